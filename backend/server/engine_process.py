"""The engine process: `python -m backend.server.engine_process --config engine.json`.

It takes the socket first, then imports the engine. If several stubs start engines at once, one process gets the socket.
The others end after loading the configuration only. Stubs may connect while the engine loads.

SIGTERM or SIGINT drains: open requests get `service.drain_timeout_s` to finish. An engine that breaks first tells its
requests and stubs why. Any other thread that an error ends takes the process with it at once. The launcher starts
another, and no request waits for a thread that is gone.

Exit codes: 0 stopped as asked, or another engine serves this socket already; 1 the engine failed; 2 wrong
configuration.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from backend.config import load_config
from backend.core.errors import ConfigError
from backend.executors.torch_engine import say_how_threads_wait
from backend.server.kernel_folder import provide_kernel_folder, provide_torch_folder
from backend.server.listener import AlreadyServedError, Listener

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with ExitStack() as held:
        try:
            file = load_config(options.config)
            listener = held.enter_context(engine_socket(file.socket_path))
        except AlreadyServedError as error:
            logger.info("another engine serves %s", error)
            return 0
        except (ConfigError, OSError) as error:
            logger.error("%s", error)
            return 2
        finally:
            if options.ready_fd is not None:
                os.close(options.ready_fd)
        _on_signals(lambda: sys.exit(0))
        say_how_threads_wait()
        provide_kernel_folder()
        provide_torch_folder()

        from backend.server.socket_server import (
            EngineServer,  # a second of processor time, for the owner of the socket only
        )

        server = EngineServer(file, listener, options.exit_when_unused)
        _on_signals(lambda: sys.exit(0) if server.is_loading else server.request_stop())
        threading.excepthook = _end_with_thread
        try:
            return server.run()
        finally:
            threading.excepthook = threading.__excepthook__


def _end_with_thread(failure: threading.ExceptHookArgs) -> None:
    name = "" if failure.thread is None else failure.thread.name
    error = failure.exc_value
    logger.critical("the thread %r failed, and the engine ends: %r", name, error, exc_info=error)
    logging.shutdown()
    os._exit(1)


@contextmanager
def engine_socket(path: Path) -> Iterator[Listener]:
    """Listen at `path` until the block ends, as the only process that does. Raises AlreadyServedError."""
    with closing(Listener(path)) as listener:
        yield listener


def _on_signals(act: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: act())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backend.server.engine_process", description="Serve one engine to stubs."
    )
    parser.add_argument("--config", type=Path, help="engine.json (default: $BROS_ENGINE_CONFIG, else the checkout's)")
    parser.add_argument(
        "--exit-when-unused", action="store_true", help="end when no stub was connected for service.unused_exit_s"
    )
    parser.add_argument("--ready-fd", type=int, help="file descriptor to close once the socket is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
