"""The event loop of the front door: none of its turns is long, whatever comes at once.

An event loop runs all that is ready before it looks at its sockets again. A token waits so long for each of the turns
that it passes.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.base_events import Server
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVarTuple, Unpack

_ACCEPTED_PER_TURN = 4  # connections. Each takes about 1 ms until its request waits (two EPYC cores).
_MOST_WAKES = 4096  # bytes read at once; gRPC's pipe holds fewer
_QUEUE_OF_GRPC = "PollerCompletionQueue"
Arguments = TypeVarTuple("Arguments")


class DoorLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, which accepts few connections in a turn, and takes all that gRPC has ready in one.

    asyncio accepts as many connections in a turn as may wait. gRPC writes a byte to a pipe for each event, and reads
    one in a turn. Its thread stops while the pipe is full. From then on a turn sees one event, and a token waits for a
    turn of each event before it (grpcio 1.85, src/python/grpcio/grpc/_cython/_cygrpc/aio/completion_queue.pyx.pxi).
    """

    async def create_server(self, *args: Any, backlog: int = 100, **options: Any) -> Server:
        """See asyncio. The kernel keeps up to `backlog` connections that are not accepted."""
        server = await super().create_server(*args, backlog=_ACCEPTED_PER_TURN, **options)
        for listener in server.sockets:
            with listener.dup() as same:
                same.listen(backlog)
        return server

    def add_reader(self, fd: Any, callback: Callable[[Unpack[Arguments]], Any], *args: *Arguments) -> None:
        """See asyncio."""
        if _is_of_grpc(callback):
            super().add_reader(fd, _take_all, fd, partial(callback, *args))
        else:
            super().add_reader(fd, callback, *args)


def _is_of_grpc(callback: Callable[..., Any]) -> bool:
    function = callback.func if isinstance(callback, partial) else callback
    return type(getattr(function, "__self__", None)).__name__ == _QUEUE_OF_GRPC


def _take_all(pipe: socket.socket, take: Callable[[], Any]) -> None:
    """Empty gRPC's pipe but for one byte, which `take` reads. It takes the events of all these bytes."""
    if (num_bytes := len(pipe.recv(_MOST_WAKES, socket.MSG_PEEK))) > 1:
        pipe.recv(num_bytes - 1)
    take()
