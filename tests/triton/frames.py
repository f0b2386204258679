"""HTTP/2 frames made by hand: what no client library would send can be sent so."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, END_HEADERS = 1, 4


def http2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def grpc_head(method: str, stream: int, *headers: tuple[bytes, bytes]) -> bytes:
    """Return the frame that opens a gRPC call, in literals that leave the table of headers alone."""
    usual = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", b"x")]
    all_headers = [*usual, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *headers]
    block = b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in all_headers)  # each under 127 bytes
    return http2_frame(HEADERS, END_HEADERS, stream, block)
