"""Keeps engine, server and front door alive from start to drain, in one event loop.

    start ──► engine loads ‖ server starts ──► canary ──► front door starts ──► ready
    stop ──► server drains ──► engine ends

An answer counts when the process of this launch holds the port: another launch may have taken it since it was chosen.
A process that ends unasked is started again after a pause that doubles. One that fails again and again before it is of
use ends the launch. A server that has lost a stub, has crashed, takes too much memory, or gives no answer, is ended
and started again. None mends itself (2.51). An engine that gives no answer is ended, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from functools import partial
from typing import Protocol

from backend.launcher.child import Child, first_exit, stubs_of
from backend.launcher.crash import first_crash
from backend.launcher.endpoints import check_free
from backend.launcher.engine_states import engine_states
from backend.launcher.engine_watch import until_silent
from backend.launcher.launch import EXTRA_EXIT_S, Launch
from backend.launcher.log_bound import keep_short
from backend.launcher.lost_stub import first_lost_stub
from backend.launcher.memory_watch import first_excess
from backend.launcher.probe import answers_canary, front_answers, is_ready
from backend.launcher.reaper import sweep_shared_memory
from backend.launcher.watchdog import NUM_HTTP_LOOKS, first_silence, until_front_silent, watched_models
from backend.wire.protocol import Stage

MAX_FAILURES = 5  # in a row, without being of use in between
STABLE_S = 60.0
FIRST_PAUSE_S = 0.5
MAX_DOUBLINGS = 3  # of the pause: what a client can end, it cannot keep down for long
PROBE_PERIOD_S = 0.1
LAST_WORD_S = 0.5
ALONE_S = 5.0  # without a client; by itself Triton ends sooner


class ServeError(Exception):
    """The launch cannot go on; the message says which process failed and what it last wrote."""


class Report(Protocol):
    """Where news of a launch goes."""

    def progress(self, what: str) -> None:
        """Say which stage this is; may be called often with the same words."""
        ...

    def ready(self, seconds: float) -> None:
        """Say that a canary request came back, this long after the start."""
        ...

    def news(self, what: str) -> None:
        """Say what went wrong, or that it is well again."""
        ...


class Supervisor:
    """Runs one launch; `run` in an event loop, `stop` from that loop's thread."""

    def __init__(self, launch: Launch, report: Report) -> None:
        self._launch = launch
        self._report = report
        self._engine = Child(launch.engine())
        self._server = Child(launch.server())
        front = launch.front()
        self._fronts = [] if front is None else [Child(front)]  # the front door, where there is one
        self._of_use: set[Child] = set()  # since they started last
        self._is_loaded = asyncio.Event()
        self._has_answered = asyncio.Event()  # a canary
        self._is_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loading = "engine: starting"

    def stop(self) -> None:
        """Begin to drain; called again, stop waiting for it."""
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()

    async def run(self) -> None:
        """Start, announce readiness, supervise, and drain after `stop`. Raises ServeError, ConfigError."""
        duties = (
            self._follow_loading(),
            self._keep(self._engine),
            self._keep(self._server),
            *map(self._keep, self._fronts),
            self._become_ready(),
        )
        tasks = [asyncio.create_task(duty) for duty in duties]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await _first_failure(tasks, stopping)
            await _cancel(*tasks, stopping)
            await asyncio.gather(self._drain(), *map(self._close, self._fronts))
        finally:
            await _cancel(*tasks, stopping)
            await asyncio.gather(*(child.kill() for child in (self._server, self._engine, *self._fronts)))

    async def _drain(self) -> None:
        """Let open requests finish; after the drain timeout have the engine end them, and Triton pass that on."""
        self._report.news("draining: open requests may finish; press Ctrl-C again to stop at once")
        watch = asyncio.create_task(self._end_when_alone())
        try:
            has_ended = await self._server.stop(self._launch.drain_timeout_s)
        finally:
            await _cancel(watch)
        if has_ended:
            await self._engine.stop(EXTRA_EXIT_S)
            return
        self._report.news(f"requests are open after {self._launch.drain_timeout_s:g} s: they end with an error")
        await self._engine.stop(EXTRA_EXIT_S)
        if not await self._server.ended_within(EXTRA_EXIT_S):
            self._report.news(f"Triton has not ended {EXTRA_EXIT_S:g} s after its last request; ending it")

    async def _end_when_alone(self) -> None:
        """End a server that has not ended, although nobody has been connected for a while.

        It keeps some requests whose clients have gone, and waits for them to its end (2.51).
        """
        loop = asyncio.get_running_loop()
        last_seen_s = loop.time()
        while loop.time() - last_seen_s < ALONE_S:
            if self._server.has_clients("http", "grpc"):
                last_seen_s = loop.time()
            await asyncio.sleep(PROBE_PERIOD_S)
        if self._server.is_running:
            self._report.news(f"Triton has not ended {ALONE_S:g} s after its last client left; ending it")
            await self._server.kill()

    async def _close(self, front: Child) -> None:
        """Let the front door take no more; it ends when its requests have, which Triton and the engine see to."""
        await front.stop(self._launch.drain_timeout_s + 2 * EXTRA_EXIT_S)

    async def _keep(self, child: Child) -> None:
        """Start `child`, and again whenever it ends. The front door asks a server that has answered us."""
        if child in self._fronts:
            await self._has_answered.wait()
        loop = asyncio.get_running_loop()
        failures = num_short = 0
        while True:
            started_s = loop.time()
            self._of_use.discard(child)
            code = await self._one_life(child)
            failures = 1 if child in self._of_use else failures + 1
            num_short = 1 if loop.time() - started_s > STABLE_S else num_short + 1
            ending = f"{child.command.name} ended with code {code}"
            is_crash = child is self._server and code < 0  # of its own making: 2.51 may lose a race while it starts
            if code > 0 and not self._is_ready.is_set():
                check_free(self._launch.endpoints.host, child.command.ports)
            if failures == MAX_FAILURES or not (self._is_ready.is_set() or is_crash):
                await asyncio.sleep(LAST_WORD_S)  # the engine says why it fails before it ends, and Triton ends with it
                raise ServeError(f"{ending}; it last wrote:\n{child.log_tail()}")
            pause_s = FIRST_PAUSE_S * 2 ** min(num_short - 1, MAX_DOUBLINGS)
            self._report.news(f"{ending}; starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    async def _one_life(self, child: Child) -> int:
        """Start `child` and watch it to its end; return its exit code. A server finds no region of a dead one."""
        if child is self._server:
            sweep_shared_memory(self._launch.run_directory)
        await child.start()
        duties = [self._watch(child)]
        if child is self._server:
            duties += self._end_when_crashed(child), self._end_when_stub_is_lost(child)
        else:
            duties.append(keep_short(child.command.log))
        watches = [asyncio.create_task(duty) for duty in duties]
        try:
            return await child.exited()
        finally:
            await _cancel(*watches)

    async def _watch(self, child: Child) -> None:
        if self._is_ready.is_set():
            await self._recover(child)
        await self._is_ready.wait()
        if child is self._server:
            await self._end_when_broken()
        elif child is self._engine and self._launch.engine_timeout_s:
            await self._end_when_silent()
        elif child in self._fronts and self._launch.canary_timeout_s:
            await self._end_when_front_silent(child)

    async def _recover(self, child: Child) -> None:
        """Tell when `child`, started again, is of use; end it when it takes too long."""
        try:
            async with asyncio.timeout(self._launch.start_timeout_s):
                await self._until(partial(self._is_of_use, child), f"{child.command.name}: starting again")
        except TimeoutError:
            self._report.news(f"{child.command.name} is not ready after {self._launch.start_timeout_s:g} s; ending it")
            await child.kill()
        else:
            self._of_use.add(child)
            self._report.news(f"{child.command.name} is ready again")

    async def _end_when_broken(self) -> None:
        """End a server that can no longer serve; `_keep` starts it again."""
        signs = [self._dead_stub]
        signs += [self._silence] * bool(self._launch.canary_timeout_s)
        signs += [self._excess] * bool(self._launch.max_triton_bytes)
        tasks = [asyncio.create_task(sign()) for sign in signs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            words = done.pop().result()
        finally:
            await _cancel(*tasks)
        self._report.news(f"{words}; ending tritonserver")
        await self._server.kill()

    async def _end_when_silent(self) -> None:
        """End an engine that hangs; its open streams end with an error, and `_keep` starts it again."""
        await until_silent(self._launch.socket_path, self._launch.engine_timeout_s)
        self._report.news(f"the engine gave no answer for {self._launch.engine_timeout_s:g} s; ending it")
        await self._engine.kill()

    async def _end_when_front_silent(self, front: Child) -> None:
        """End a front door that hangs; its connections end, and `_keep` starts it again."""
        await until_front_silent(self._launch)
        timeout_s = NUM_HTTP_LOOKS * self._launch.canary_timeout_s
        self._report.news(f"{front.command.name} gave no answer for {timeout_s:g} s; ending it")
        await front.kill()

    async def _end_when_crashed(self, server: Child) -> None:
        """End a server that says it has crashed: it may hang instead of ending (2.51)."""
        number = await first_crash(server.command.log, server.log_start)
        self._report.news(f"{server.command.name} crashed with signal {number}; ending it")
        await server.kill()

    async def _end_when_stub_is_lost(self, server: Child) -> None:
        """End a server that does not become ready, as it waits for the end of a stub that lives (2.51)."""
        model = await first_lost_stub(server.pid, lambda: server in self._of_use)
        if model is not None:
            self._report.news(f"{server.command.name} gave up a stub of model {model!r} that lives; ending it")
            await server.kill()

    async def _dead_stub(self) -> str:
        """Wait until a stub has died; say whose.

        Triton 2.51 does not start it again, and its open streams never end. Where it died with a lock of its shared
        memory, the server aborts ten seconds later.
        """
        stubs = stubs_of(self._server.pid)
        missing = sorted(watched_models(self._launch).keys() - set(stubs.values()))
        model = missing[0] if missing else stubs[await first_exit(set(stubs))]
        return f"a stub of model {model!r} died"

    async def _silence(self) -> str:
        silence = await first_silence(self._launch)
        return (
            f"model {silence.model!r}, asked over {silence.path}, gave no answer for "
            f"{self._launch.canary_timeout_s:g} s"
        )

    async def _excess(self) -> str:
        most_bytes = self._launch.max_triton_bytes
        num_bytes = await first_excess(self._server.pid, most_bytes)
        return f"Triton takes {num_bytes / 2**30:.2f} GiB of memory (limit: {most_bytes / 2**30:g} GiB)"

    async def _become_ready(self) -> None:
        """Follow the engine's loading and the server's start until a real request comes back."""
        started_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._launch.start_timeout_s):
                await self._until(self._is_up, "Triton: starting")
                await self._is_loaded.wait()
                await self._until(partial(self._is_of_use, self._server), "first request")
                self._has_answered.set()
                for front in self._fronts:
                    await self._until(partial(self._is_of_use, front), "bros-openai: starting")
        except TimeoutError:
            raise ServeError(f"not ready after {self._launch.start_timeout_s:g} s: {self._loading}") from None
        self._of_use.update((self._engine, self._server, *self._fronts))
        self._is_ready.set()
        self._report.ready(asyncio.get_running_loop().time() - started_s)

    def _is_up(self) -> bool:
        return self._server.has_its_ports and is_ready(self._launch.endpoints.http_url)

    def _is_of_use(self, child: Child) -> bool:
        """Return whether a canary comes back from our own server, through the front door if `child` is that."""
        if not (self._server.has_its_ports and child.has_its_ports):
            return False
        at = self._launch.endpoints
        if child in self._fronts and at.openai_url is not None:
            return front_answers(at.openai_url)
        return answers_canary(at.http_url)

    async def _follow_loading(self) -> None:
        async for state in engine_states(self._launch.socket_path):
            if state.stage is Stage.READY:
                self._loading = "engine: ready"
                if state.detail:
                    self._report.news(state.detail)
                self._is_loaded.set()
                return
            share = "" if state.fraction is None else f" {state.fraction:.0%}"
            self._loading = f"engine: {state.detail or state.stage.value}{share}"
            self._report.progress(self._loading)
            if state.stage is Stage.FAILED:
                is_unexpected = re.fullmatch(r"\w+\(.*\)", state.detail, re.DOTALL)  # an exception, no words of ours
                last_words = f"; it last wrote:\n{self._engine.log_tail()}" if is_unexpected else ""
                raise ServeError(f"the engine could not start: {state.detail}{last_words}")

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        while not await asyncio.to_thread(holds):
            self._report.progress(f"{self._loading} · {what}")
            await asyncio.sleep(PROBE_PERIOD_S)


async def _cancel(*tasks: asyncio.Task[None] | asyncio.Task[bool] | asyncio.Task[str]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _first_failure(tasks: list[asyncio.Task[None]], stopping: asyncio.Task[bool]) -> None:
    """Return when `stopping` is done; raise what a task raises before. A task that returns has done its duty."""
    pending: set[asyncio.Task[None] | asyncio.Task[bool]] = {*tasks, stopping}
    while not stopping.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(asyncio.CancelledError):
                await task
