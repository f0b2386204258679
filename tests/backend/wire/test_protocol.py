"""Messages survive the socket; garbage ends the connection with a typed error."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest

from backend.core.errors import BrosError, EngineUnavailableError, OverloadedError, RequestTooLargeError
from backend.wire.protocol import (
    MAX_ERROR_CHARS,
    MAX_FRAME_BYTES,
    VERSION,
    Cancel,
    Chunk,
    Chunks,
    End,
    EngineState,
    Generation,
    Hello,
    Metrics,
    Prefixes,
    ProtocolError,
    Refused,
    Removed,
    Sample,
    Sampling,
    Snapshot,
    Stage,
    Stored,
    Submit,
    Timings,
    WatchPrefixes,
    engine_reader,
    error_end,
    frame,
    send,
    stub_reader,
)

GENERATION = Generation(
    priority_class="rt", token_ids=(1, 2), sampling=Sampling(max_tokens=3, seed=2**64 - 1), stop_words=("a", "ä")
)
TO_ENGINE = [
    Hello(VERSION, "bros", True, 7),
    Submit(1, "a7", 0.5, GENERATION),
    Cancel(1, "a7", True),
    Refused("rt", "INVALID_REQUEST"),
    Snapshot(2, names_requests=True),
    WatchPrefixes(),
]
TO_STUB = [
    EngineState(Stage.LOADING, "reading", 0.5),
    Chunks((Chunk(1, " ü", (3, 4), (-0.5,)), Chunk(2, end=End("stop", Timings(0.1, 0.2, None, 0, 5, 1))))),
    Metrics((Sample("bros_steps_total", {"class": "rt"}, 3.0, (0.1, 0.2)),)),
    Prefixes(0, [Stored(None, [-(2**63), 5], bytes(128), "salt"), Removed([2**63 - 1])]),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    stub, engine = socket.socketpair()
    with stub, engine:
        yield stub, engine


def test_every_message_arrives_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    stub, engine = pair
    for to_engine in TO_ENGINE:
        send(stub, to_engine)
    for to_stub in TO_STUB:
        send(engine, to_stub)
    stub.shutdown(socket.SHUT_WR)
    engine.shutdown(socket.SHUT_WR)
    with engine_reader(engine) as from_stub, stub_reader(stub) as from_engine:
        assert list(from_stub) == TO_ENGINE
        assert list(from_engine) == TO_STUB


def test_a_message_may_arrive_in_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    stub, engine = pair
    with engine_reader(engine) as reader:
        for byte in frame(TO_ENGINE[2]):
            stub.sendall(bytes([byte]))
        assert reader.read() == TO_ENGINE[2]


@pytest.mark.parametrize("num_bytes", [0, 3, 4, 20])
def test_a_peer_that_leaves_inside_a_frame_is_an_end_and_no_error(
    pair: tuple[socket.socket, socket.socket], num_bytes: int
) -> None:
    stub, engine = pair
    stub.sendall(frame(TO_ENGINE[1])[:num_bytes])
    stub.close()
    with engine_reader(engine) as reader:
        assert reader.read() is None


@pytest.mark.parametrize(
    "garbage",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\x00\x00\x00\x02hi",
        b"\x00\x00\x00\x01\xc1",
        frame(TO_STUB[0]),
        (lambda body: len(body).to_bytes(4, "big") + body)(msgspec.msgpack.encode(["Submit", "one", 2])),
    ],
    ids=["too long", "no message", "no msgpack", "a stub's message", "wrong types"],
)
def test_garbage_is_a_protocol_error(pair: tuple[socket.socket, socket.socket], garbage: bytes) -> None:
    stub, engine = pair
    stub.sendall(garbage)
    with engine_reader(engine) as reader, pytest.raises(ProtocolError):
        reader.read()


def test_sending_to_a_peer_that_is_gone_is_a_typed_error(pair: tuple[socket.socket, socket.socket]) -> None:
    stub, engine = pair
    engine.close()
    with pytest.raises(EngineUnavailableError):
        send(stub, TO_ENGINE[0])


def test_an_error_keeps_its_code_status_and_retry_advice() -> None:
    end = error_end(OverloadedError("be queue full", retry_after_s=0.2))
    assert (end.error_code, end.error_status) == ("OVERLOADED", "UNAVAILABLE")
    assert end.error_message == "be queue full; retry_after_ms=200"


def test_an_error_that_quotes_a_client_is_short_and_can_be_sent() -> None:
    end = error_end(BrosError("half \ud83d and " + "long" * 10_000))
    assert end.error_message.startswith("half \\ud83d and long")
    assert len(end.error_message) == MAX_ERROR_CHARS + 1
    assert frame(Chunks((Chunk(1, end=end),)))


def test_a_message_that_the_peer_would_not_take_is_not_sent() -> None:
    with pytest.raises(RequestTooLargeError, match=f"exceeds {MAX_FRAME_BYTES}"):
        frame(Chunks((Chunk(1, "x" * MAX_FRAME_BYTES),)))


def test_a_message_nested_without_end_is_a_protocol_error(pair: tuple[socket.socket, socket.socket]) -> None:
    body = b"\x95\xa6Submit\x01\xa0\xca\x00\x00\x00\x00\x81\xa1x" + b"\x91" * 60_000 + b"\xc0"
    pair[0].sendall(len(body).to_bytes(4, "big") + body)
    with engine_reader(pair[1]) as reader, pytest.raises(ProtocolError):
        reader.read()
