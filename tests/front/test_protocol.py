"""What comes over a connection before a request is whole: its bounds, and offers of another protocol."""

from __future__ import annotations

import gc
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from client import FakeServer
from front import protocol
from tests.front.door import COMPLETIONS_PATH, listening
from tests.triton.servers import wait_until

HEAD = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n"
BODY = b'{"prompt":"one two","max_tokens":1}'
POST = f"POST {COMPLETIONS_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with listening(FakeServer()) as url:
        place = urlsplit(url)
        yield str(place.hostname), int(place.port or 0)


def talk(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Return what comes until the server closes the connection, or has answered with a whole body."""
    with socket.create_connection(address, timeout=20.0) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while not _is_whole(answer) and (piece := connection.recv(65536)):
            answer += piece
        return answer


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    lengths = [line.split()[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    return bool(end) and bool(lengths) and len(body) >= int(lengths[0])


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_monitors_that_ask_for_the_head_alone_get_no_body(address: tuple[str, int], path: str) -> None:
    """The answer to the next request on the connection begins where the head ends."""
    request = f"{{}} {path} HTTP/1.1\r\nhost: localhost\r\n{{}}\r\n"
    with socket.create_connection(address, timeout=20.0) as connection:
        connection.sendall((request.format("HEAD", "") + request.format("GET", "connection: close\r\n")).encode())
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, second = answers.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    length = int(first.lower().partition(b"content-length: ")[2].split()[0])
    assert length == len(second.partition(b"\r\n\r\n")[2]) > 0


def status_of(answer: bytes) -> int:
    assert json.loads(answer.partition(b"\r\n\r\n")[2])
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD, b"a:b\r\n" * (protocol.MAX_HEADERS + 1)),
        (HEAD, b"x: " + b"a" * (protocol.MAX_HEAD_BYTES + 1)),
        (HEAD, b"x: " + b"a" * protocol.MAX_HEAD_BYTES + b"\r\n\r\n"),
    ],
    ids=["count", "endless", "long"],
)
def test_a_head_beyond_its_bounds_is_refused(address: tuple[str, int], pieces: tuple[bytes, ...]) -> None:
    answer = talk(address, *pieces)
    assert status_of(answer) == 431
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "path", [b"/", b"/v1/files?", b"/v1/files?" + b"a=&" * 600], ids=["path", "query", "parameters"]
)
def test_a_long_url_is_refused(address: tuple[str, int], path: bytes) -> None:
    """Its parameters are read on the event loop: 12,000 of them stood in the way of a stream for 80 ms each time."""
    end = b" HTTP/1.1\r\nhost: localhost\r\n\r\n"
    most = protocol.MAX_URL_BYTES - len(path)
    assert status_of(talk(address, b"GET " + path + b"a" * most + end)) in (400, 404)
    assert status_of(talk(address, b"GET " + path + b"a" * (most + 1) + end)) == 414
    assert status_of(talk(address, b"GET " + path + b"a" * 60_000 + end)) == 414


def test_a_head_within_its_bounds_is_answered(address: tuple[str, int]) -> None:
    num_left = protocol.MAX_HEADERS - 1  # `host` is one
    assert status_of(talk(address, HEAD + b"a:b\r\n" * num_left + b"\r\n")) == 200


def test_requests_wait_on_one_connection_in_order_but_not_without_end(address: tuple[str, int]) -> None:
    request = HEAD + b"\r\n"
    assert everything(address, request * protocol.MAX_PIPELINED).count(b"HTTP/1.1 200") == protocol.MAX_PIPELINED
    assert everything(address, request * 1000).count(b"HTTP/1.1 200") <= 1
    assert status_of(talk(address, request)) == 200


def everything(address: tuple[str, int], piece: bytes) -> bytes:
    """Return all that comes for `piece`, whose last request closes the connection."""
    with socket.create_connection(address, timeout=20.0) as connection:
        connection.sendall(piece.removesuffix(b"\r\n") + b"connection: close\r\n\r\n")
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


LONG_BODY = b'{"prompt":"one two","max_tokens":1000}'
LONG_POST = POST + b"content-length: %d\r\n\r\n" % len(LONG_BODY) + LONG_BODY


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        HEAD + b"\r\n",
        (HEAD + b"\r\n") * (protocol.MAX_PIPELINED - 1),
        (HEAD + b"\r\n") * (protocol.MAX_PIPELINED + 1),
        LONG_POST,
        POST + b"content-length: 90000\r\n\r\n" + b" " * 90000,
        POST + b"content-length: 90000\r\n\r\n" + b" " * 50000,
    ],
    ids=["nothing", "one", "most", "too many", "another", "a long one", "half of one"],
)
def test_whoever_leaves_is_seen_whatever_waits_behind_the_request(behind: bytes) -> None:
    server = FakeServer(token_s=1.0)  # a thousand seconds for an answer that is waited for
    with listening(server) as url:
        place = urlsplit(url)
        with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=20.0) as connection:
            connection.sendall(LONG_POST)
            wait_until(lambda: len(server.open_ids) == 1, "the request")
            with suppress(ConnectionError):
                connection.sendall(behind)
        wait_until(lambda: not server.open_ids, "the end of what nobody waits for")
    assert len(server.calls) == 1


def _read_all(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(1 << 20):
        answer += piece
    return answer


STREAM_BODY = b'{"prompt":"one two","max_tokens":60000,"stream":true}'
STREAM_POST = POST + b"content-length: %d\r\n\r\n" % len(STREAM_BODY) + STREAM_BODY


def test_a_stream_that_nobody_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton keeps the tokens of a stream that waits, without a bound."""
    monkeypatch.setattr(protocol, "MAX_UNREAD_S", 0.5)
    server = FakeServer(max_model_len=200_000)
    with listening(server) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((str(urlsplit(url).hostname), int(urlsplit(url).port or 0)))
        connection.sendall(STREAM_POST)
        wait_until(lambda: bool(server.open_ids), "the stream")
        wait_until(lambda: not server.open_ids, "the end of a stream that nobody reads")
        with suppress(ConnectionResetError):
            assert not _read_all(connection).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


def test_a_reader_that_pauses_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_UNREAD_S", 20.0)
    with listening(FakeServer(max_model_len=200_000)) as url, socket.socket() as connection:
        connection.connect((str(urlsplit(url).hostname), int(urlsplit(url).port or 0)))
        connection.sendall(STREAM_POST)
        time.sleep(1.0)
        answer = bytearray()
        while not answer.endswith(b"0\r\n\r\n"):
            piece = connection.recv(1 << 20)
            assert piece, "the connection ended"
            answer += piece
        assert answer.count(b"data: {") == 60_000 + 1  # the last says why it ended
        assert b"data: [DONE]" in answer[-100:]


@pytest.mark.parametrize("reads", [False, True], ids=["leaves early", "reads"])
@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"\r\n",
        (HEAD + b"\r\n") * 20,
        HEAD + b"X\0\r\n\r\n",
        POST + b"content-length: 100000\r\n\r\n" + b" " * 90_000,
        CHUNKED + b"1\r\na\r\n" * 600,
    ],
    ids=["one", "many", "malformed", "half a body", "tiny chunks"],
)
def test_an_ended_connection_leaves_nothing_to_the_collector(
    address: tuple[str, int], sent: bytes, reads: bool
) -> None:
    """Full collections are rare in this process: one client filled 100 MB a second with what they would have freed."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            with socket.create_connection(address, timeout=20.0) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while reads and connection.recv(65536):
                    pass
        wait_until(lambda: num_left() <= 2, "requests and connections to go")
    finally:
        gc.enable()


def num_left() -> int:
    kinds = (protocol.BoundedProtocol, RequestResponseCycle)
    return sum(issubclass(type(each), kinds) for each in gc.get_objects())  # asks no object: torch's may warn


def test_trailers_are_bounded_like_headers(address: tuple[str, int]) -> None:
    chunked = CHUNKED + b"1\r\n{\r\n0\r\n"
    assert status_of(talk(address, chunked, b"a:b\r\n" * (protocol.MAX_HEADERS + 1))) == 431


@pytest.mark.parametrize("trailer", [b"x-priority-class: nonsense", b"content-encoding: gzip", b"host: example.com"])
def test_trailers_are_no_headers(address: tuple[str, int], trailer: bytes) -> None:
    """A proxy in front has judged the headers alone, and where a client's address stands there, a trailer would win."""
    body = b'{"model": "bros", "prompt": "hi", "max_tokens": 1}'
    chunked = CHUNKED + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    as_trailer = status_of(talk(address, chunked + trailer + b"\r\n\r\n"))
    as_header = status_of(talk(address, chunked.replace(b"\r\n\r\n", b"\r\n" + trailer + b"\r\n\r\n", 1)))
    assert (as_trailer, as_header) == (200, 400 if b"gzip" not in trailer else 415)


def test_a_trailer_that_would_end_the_connection_unseen_ends_it(address: tuple[str, int]) -> None:
    body = b'{"model": "bros", "prompt": "hi", "max_tokens": 1}'
    request = CHUNKED + b"%x\r\n%s\r\n0\r\nconnection: close\r\n\r\n" % (len(body), body)
    with socket.create_connection(address, timeout=20.0) as connection, suppress(ConnectionResetError):
        connection.sendall(request + b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert _read_all(connection).count(b" 200 OK") <= 1


def test_a_whole_answer_that_nobody_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in memory meanwhile."""
    monkeypatch.setattr(protocol, "MAX_UNREAD_WHOLE_S", 0.5)
    body = b'{"prompt":"one two","max_tokens":12000,"logprobs":20}'  # some 6 MB
    with listening(FakeServer(max_model_len=20_000)) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((str(urlsplit(url).hostname), int(urlsplit(url).port or 0)))
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(1)
        time.sleep(3.0)
        with suppress(ConnectionResetError):
            assert not _read_all(connection).endswith(b"}")


def chunks_of(num_bytes: int, count: int) -> bytes:
    return (b"%x\r\n" % num_bytes + b" " * num_bytes + b"\r\n") * count


def test_a_body_in_tiny_chunks_is_refused_before_it_is_read(address: tuple[str, int]) -> None:
    answer = talk(address, CHUNKED, chunks_of(1, 100_000))
    assert status_of(answer) == 400
    assert b"chunks" in answer
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    ("num_bytes", "count"),
    [(1, protocol.MAX_TINY_CHUNKS - 2), (protocol.MIN_CHUNK_BYTES, 10 * protocol.MAX_TINY_CHUNKS)],
)
def test_a_body_in_some_chunks_is_answered(address: tuple[str, int], num_bytes: int, count: int) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert status_of(talk(address, CHUNKED, chunks_of(num_bytes, count), body)) == 200


def test_a_refusal_says_nothing_before_the_answer_to_an_earlier_request(address: tuple[str, int]) -> None:
    first = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    answer = everything(address, first + CHUNKED + chunks_of(1, 1000))
    assert b"chunks" not in answer


def test_headers_that_never_end_are_given_up(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.02)
    assert status_of(talk(address, HEAD)) == 408
    assert talk(address) == b""
    assert talk(address, b"\r\n" + HEAD + b"\r\n", b"\r\n").startswith(b"HTTP/1.1 200")


def test_a_connection_too_many_is_told_so(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 0)
    answer = talk(address)
    assert status_of(answer) == 503
    assert b"retry-after: 1" in answer.lower()


def test_one_address_leaves_connections_to_others(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 4)
    with ExitStack() as held:
        for _ in range(3):
            connection = held.enter_context(socket.create_connection(address, timeout=20.0))
            connection.sendall(HEAD + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert status_of(talk(address, HEAD + b"\r\n")) == 503
        other = held.enter_context(socket.create_connection(address, timeout=20.0, source_address=("127.0.0.2", 0)))
        other.sendall(HEAD + b"\r\n")
        assert other.recv(12) == b"HTTP/1.1 200"


def test_a_newcomer_gets_the_place_of_who_has_most_and_sends_nothing(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 8)
    with ExitStack() as held:
        crowd = []
        for index in range(8):
            source = (f"127.0.0.{3 + index % 2}", 0)
            crowd.append(held.enter_context(socket.create_connection(address, 20.0, source_address=source)))
            crowd[-1].sendall(POST + b"content-length: 100\r\n\r\n{")
        for index in range(6):
            assert status_of(talk(address, HEAD + b"\r\n")) == 200, f"newcomer {index}"
        assert status_of(crowd[0].recv(65536)) == 503
        assert crowd[7].send(b"a") == 1


@pytest.mark.parametrize("expects", [b"", b"expect: 100-continue\r\n"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_client_without_chunks_gets_none(address: tuple[str, int], streams: bool, expects: bytes) -> None:
    body = b'{"prompt":"one two","max_tokens":2%s}' % (b',"stream":true' if streams else b"")
    post = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + expects + b"content-length: %d\r\n\r\n" % len(body) + body
    head, _, text = talk(address, post).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    pieces = text.split(b"\n\n")
    events = [piece.removeprefix(b"data: ") for piece in pieces if piece not in (b"", b"data: [DONE]")]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == "one two "
    assert text.endswith(b"data: [DONE]\n\n") == streams


@pytest.mark.parametrize("name", ["host", "origin", "authorization", "content-type"])
def test_a_header_that_says_two_things_is_refused(address: tuple[str, int], name: str) -> None:
    again = b"%s: localhost\r\n%s: other\r\n" % (name.encode(), name.encode())
    answer = talk(address, b"GET /v1/models HTTP/1.1\r\n" + again + b"\r\n")
    assert status_of(answer) == 400
    assert b"given twice" in answer


@pytest.mark.parametrize("offered", [b"h2c", b"websocket"])
@pytest.mark.parametrize("num_first", [0, 7])
def test_an_upgrade_is_ignored_and_the_request_answered(
    address: tuple[str, int], offered: bytes, num_first: int
) -> None:
    head = POST + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: %s\r\nhttp2-settings: AAEA\r\n" % offered
    head += b"content-length: %d\r\n\r\n" % len(BODY)
    answer = talk(address, head + BODY[:num_first], BODY[num_first:])
    assert status_of(answer) == 200
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == "one "


def test_a_tunnel_is_refused(address: tuple[str, int]) -> None:
    assert status_of(talk(address, b"CONNECT a:1 HTTP/1.1\r\nhost: localhost\r\n\r\n")) == 405


def test_what_is_no_http_is_refused(address: tuple[str, int]) -> None:
    assert status_of(talk(address, b"nonsense\r\n\r\n")) == 400
