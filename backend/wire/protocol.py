"""Messages between the Triton stubs and the engine process, and their frames on a Unix socket.

    stub ── Hello, Submit, Cancel, Refused, Snapshot ──► engine
    stub ◄────────── EngineState, Chunks, Metrics ────── engine

A worker of a router in front of many engines also sends `WatchPrefixes`, and then gets `Prefixes`.

A frame is four bytes of length (big-endian) and one message in msgpack. A message's type is its first element; a
connection opens with `Hello` and is closed by the engine when the versions differ. `handle` numbers the requests of
one connection; every handle ends in exactly one chunk that has an `end`.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Iterator
from typing import Generic, Self, TypeVar

import msgspec

from backend.core.errors import BrosError, EngineUnavailableError, RequestTooLargeError, shorten

VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_ERROR_CHARS = 2000  # of a message that may quote a client
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")  # struct ucred


class Stage(enum.Enum):
    """Where the engine is between start and stop."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling as the client asked for it; None takes the engine's default. See `SamplingParams`."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    num_top_log_probs: int = 0


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request. Exactly one of `text`, `messages` (JSON) and `token_ids` is given. Times are in seconds.

    `tools` (JSON) come with `messages` only.
    `priority_class` is `rt` or `be`; a missing SLO takes the engine's default; `deadline_s` counts from arrival.
    """

    priority_class: str
    text: str | None = None
    messages: str | None = None
    tools: str | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: Sampling = Sampling()
    stop_words: tuple[str, ...] = ()
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    itl_slo_s: float | None = None
    deadline_s: float | None = None
    timeout_s: float | None = None
    cache_salt: str = ""
    is_streamed: bool = False
    echoes_prompt: bool = False
    wants_log_probs: bool = False
    wants_metrics: bool = False
    wants_num_input_tokens: bool = False
    wants_num_output_tokens: bool = False


class Hello(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """First message of a connection. `name` is the model's; `wants_metrics`: send `Metrics` on this connection.

    `server_pid` is the process without which the sender has no reason to live; None if there is none.
    """

    version: int
    name: str
    wants_metrics: bool = False
    server_pid: int | None = None


class Submit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Take a request in. `client_id` is the client's own id, "" if none; `arrival_s` is on the machine's clock."""

    handle: int
    client_id: str
    arrival_s: float
    generation: Generation


class Cancel(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End a request; unknown and ended ones are ignored. `timed_out`: its own timeout ended it, so report an error."""

    handle: int
    client_id: str
    timed_out: bool = False


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A request was refused before it got here; it is to be counted."""

    priority_class: str
    error_code: str


class Snapshot(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Ask for the engine's state as JSON; the answer is a chunk of text that ends at once.

    `names_requests`: with its requests, their ids among them; without them it holds counts only.
    """

    handle: int
    names_requests: bool


class WatchPrefixes(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Ask for which prefixes the cache holds, now and from now on. Asked again, all is told again."""


class Timings(msgspec.Struct, frozen=True, array_like=True):
    """What happened to a request. Seconds; None where there was no such moment."""

    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    num_preemptions: int
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    has_hopeless_slo: bool = False


class End(msgspec.Struct, frozen=True, array_like=True):
    """How a request ended: `finish_reason`, or an error as its code, Triton status and message."""

    finish_reason: str | None = None
    timings: Timings | None = None
    error_code: str | None = None
    error_status: str = "INTERNAL"
    error_message: str = ""


def error_end(error: BrosError) -> End:
    """Return the end of a request that failed with `error`."""
    return End(
        error_code=error.code, error_status=error.triton_status, error_message=shorten(str(error), MAX_ERROR_CHARS)
    )


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """New output of one request; the last one carries `end`. `top_*`: as many of each token's rivals as were wanted."""

    handle: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] | None = None
    end: End | None = None
    top_ids: tuple[int, ...] = ()
    top_log_probs: tuple[float, ...] = ()


class Chunks(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All output of one step for one connection."""

    chunks: tuple[Chunk, ...]


class EngineState(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Sent on connecting and at every change. `detail` of READY: lines about memory and speed. `fraction` of loading,
    0 to 1, where it is known. `max_seq_len`: the longest prompt and output together, in tokens; None until it is
    loaded."""

    stage: Stage
    detail: str = ""
    fraction: float | None = None
    max_seq_len: int | None = None


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """News of one time series: an increment (counter), a value (gauge) or observations (histogram)."""

    name: str
    labels: dict[str, str]
    value: float = 0.0
    observations: tuple[float, ...] = ()


class Metrics(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What changed since the last `Metrics` on this connection."""

    samples: tuple[Sample, ...]


class Stored(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Segments that can be borrowed from now on. See kv/prefix_log.py."""

    parent: int | None
    hashes: list[int]
    tokens: bytes
    salt: str = ""


class Removed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Segments that cannot be borrowed any more."""

    hashes: list[int]


class Prefixes(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What came into the prefix cache and left it, in order. Number 0 is all that it holds; each later one is one more.

    A receiver that does not read in time misses some; number 0 then comes again.
    """

    number: int
    events: list[Stored | Removed]


ToEngine = Hello | Submit | Cancel | Refused | Snapshot | WatchPrefixes
ToStub = Chunks | EngineState | Metrics | Prefixes

M = TypeVar("M")
_encoder = msgspec.msgpack.Encoder()


class ProtocolError(Exception):
    """The peer sent what this version does not understand; the connection is closed."""


def frame(message: ToEngine | ToStub) -> bytes:
    """Return `message` as bytes to send. Raises RequestTooLargeError for one that the peer would not take."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise RequestTooLargeError(f"a message of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Reader(Generic[M]):
    """Yields the messages that arrive on a socket, until the peer closes it. Raises ProtocolError on garbage.

    Leaving its `with` block gives the reader's hold on the socket back, not the socket itself.
    """

    def __init__(self, connection: socket.socket, message_type: type[M]) -> None:
        self._stream = connection.makefile("rb")
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(message_type)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[M]:
        while (message := self.read()) is not None:
            yield message

    def read(self) -> M | None:
        """Return the next message; None once the peer has closed."""
        head = self._stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
        body = self._stream.read(length)
        if len(body) < length:
            return None
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise ProtocolError(f"not a message of protocol version {VERSION}: {error}") from error


def engine_reader(connection: socket.socket) -> Reader[ToEngine]:
    """Return the engine's end: reads what stubs send."""
    return Reader(connection, ToEngine)  # type: ignore[arg-type]  # a union is a type to msgspec, not to mypy


def stub_reader(connection: socket.socket) -> Reader[ToStub]:
    """Return the stub's end: reads what the engine sends."""
    return Reader(connection, ToStub)  # type: ignore[arg-type]  # as above


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the process id and the user id at the other end of a Unix socket, as the kernel knows them."""
    pid, uid, _gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid


def send(connection: socket.socket, message: ToEngine | ToStub) -> None:
    """Send `message`, blocking up to the socket's timeout. Raises EngineUnavailableError when that fails."""
    try:
        connection.sendall(frame(message))
    except OSError as error:
        raise EngineUnavailableError(f"the connection to the engine broke: {error}") from error
