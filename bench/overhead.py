"""Measures the cost of Triton: the same engine in this process, and behind a real server over one gRPC stream.

    python -m bench.overhead [--executor torch|sim] [--threads N] [--set KEY=VALUE] [--json] [--out FILE] [--more]

Two numbers: time to first token of one request alone, and output tokens per second of 32 streams at once, of either
class. The class goes through Triton twice: as an input of the model `bros`, and as the name of `bros_rt` or `bros_be`.
A round measures the engine in this process before and after both. Triton's cost is compared within the round, because a
machine's speed may drift by more between two rounds. The engine against itself shows the noise.

Engine, server and this client share the machine's cores. Any of them that takes a core from the engine slows it down.
The client, which is another machine in production, therefore avoids that (see `_lean_client`). So do the server and
stubs that `bros-serve` starts. The processor time per token is told by process, and for the engine alone
in this process. `--threads` below the number of cores leaves the server some; the simulated executor only sleeps: it
tells waiting from computing. Over gRPC the client asks for output_ids, which is what the engine in this process hands
over. `python -m bench.door` compares the front door with gRPC in the same way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # ships no types
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from backend.config import EngineConfig, ExecutorKind, parse_config
from backend.core.numbers import whole
from backend.core.plan import StepOutput
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Submit
from backend.launcher.options import engine_config, make_parser
from backend.server.assembly import Runtime, load_runtime, make_tokenizer
from bench.common.command import as_command
from bench.common.output import put_out
from bench.common.provenance import provenance
from bench.live.server import running_server
from bench.report.overhead import (
    BY_MODEL_NAME,
    DIRECT,
    IN_PROCESS,
    IN_PROCESS_AGAIN,
    THROUGH_TRITON,
    Round,
    compare,
    describe,
)
from client.transports.loopback import channel_options

PROMPT_TOKENS = 32
NUM_STREAMS = 32
STREAM_TOKENS = 64
NUM_ALONE = 5  # requests for the time to first token, per round
SIM_STEP_S = 0.02  # of the simulated executor, whatever the step
_TIMEOUT_S = 300.0
LOOSE_SLO_MS = 60_000.0  # so that no deadline shapes the steps that are compared


@dataclass(slots=True)
class Flight:
    """One request under way: when it was sent, when tokens came, how many."""

    sent_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    num_tokens: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def note(self, num_tokens: int, has_ended: bool) -> None:
        """Take tokens in as they arrive. The front door tells their number at the end: 0 before that is a token."""
        if (num_tokens or not has_ended) and self.first_s is None:
            self.first_s = time.monotonic()
        self.num_tokens += num_tokens
        if has_ended:
            self.ended.set()


Send = Callable[[Sequence[int], int, PriorityClass], Flight]  # prompt, output tokens, class


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    options = _parser().parse_args()
    arguments = serve_arguments(ExecutorKind(options.executor), options.threads, options.set)
    config = parse_config(engine_config(make_parser().parse_args(arguments)))
    setup = {
        "executor": options.executor,
        "threads": options.threads,
        "set": options.set,
        "num_streams": NUM_STREAMS,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": STREAM_TOKENS,
    }
    source = provenance()
    rounds = _rounds_so_far(options.out, setup, source) if options.more else []
    with ExitStack() as stack:
        send_directly = stack.enter_context(in_process(config))
        ways_through = stack.enter_context(through_triton(arguments))
        rounds += measure({IN_PROCESS: send_directly, **ways_through}, options.rounds)
    result = {**setup, **compare(rounds), "rounds": rounds, "provenance": source}
    put_out(result, options, describe)
    return 0


def measure(ways: dict[str, Send], num_rounds: int) -> list[Round]:
    """Return what each round saw of every way, and of the engine in this process once more."""
    warm_up(ways)
    return [measure_round(ways) for _ in range(num_rounds)]


def warm_up(ways: Mapping[str, Send]) -> None:
    """Send some tokens each way."""
    for send in ways.values():
        together(send, PriorityClass.REAL_TIME, num_tokens=8)


def ttft_ms(laps: Mapping[str, Send]) -> dict[str, float]:
    """Return each way's median time to first token on an idle engine, in milliseconds."""
    return {way: statistics.median(alone(send) for _ in range(NUM_ALONE)) * 1e3 for way, send in laps.items()}


def measure_round(ways: dict[str, Send]) -> Round:
    """Return one round: medians of the time to first token, and of either class tokens per second and their cost."""
    laps = {**ways, IN_PROCESS_AGAIN: ways[IN_PROCESS]}
    found: dict[str, Any] = {"ttft_ms": ttft_ms(laps)}
    for priority_class in PriorityClass:
        rates: dict[str, float] = {}
        cpu_us: dict[str, dict[str, float]] = {}
        for way, send in laps.items():
            before_s = cpu_s_by_process()
            rates[way] = together(send, priority_class)
            cpu_us[way] = _cpu_us_per_token(before_s, cpu_s_by_process())
        cpu_us = {way: {"engine": us["client"]} if way in DIRECT else us for way, us in cpu_us.items()}
        found[priority_class.value] = {"tokens_per_s": rates, "cpu_us_per_token": cpu_us}
    return found


def _rounds_so_far(path: Path | None, setup: dict[str, Any], source: dict[str, Any]) -> list[Round]:
    """Return the rounds of a file that measured the same; raise SystemExit where it did not."""
    if path is None or not path.exists():
        return []
    document = json.loads(path.read_text())
    was = {name: document[name] for name in setup} | {"commit": document["provenance"]["commit"]}
    if was != setup | {"commit": source["commit"]}:
        raise SystemExit(f"{path} measured something else: {was}")
    return list(document["rounds"])


def cpu_s_by_process() -> dict[str, float]:
    """Return the processor time, in seconds, of this client and of the processes of the server it started.

    While the engine in this process runs, "client" is that engine.
    """
    client = psutil.Process()
    seconds = {"client": sum(client.cpu_times()[:2]), "server": 0.0, "stubs": 0.0, "engine": 0.0}
    for process in client.children(recursive=True):
        command = process.cmdline()
        if "backend.server.engine_process" in command:
            name = "engine"
        elif any(word.endswith("python_backend_stub") for word in command[:1]):
            name = "stubs"
        elif any(word.endswith("/tritonserver") for word in command[:1]):
            name = "server"
        else:
            continue
        seconds[name] += sum(process.cpu_times()[:2])
    return seconds


def _cpu_us_per_token(before_s: dict[str, float], after_s: dict[str, float]) -> dict[str, float]:
    num_tokens = NUM_STREAMS * STREAM_TOKENS
    return {name: (after_s[name] - before_s[name]) / num_tokens * 1e6 for name in after_s}


def alone(send: Send) -> float:
    """Return the time to first token of one request on an idle engine, in seconds."""
    flight = send(_prompt(0), 2, PriorityClass.REAL_TIME)
    _wait([flight])
    assert flight.first_s is not None, "a request ended without a token"
    return flight.first_s - flight.sent_s


def together(send: Send, priority_class: PriorityClass, num_tokens: int = STREAM_TOKENS) -> float:
    """Return output tokens per second of all streams at once, from the first sent to the last token."""
    start_s = time.monotonic()
    flights = [send(_prompt(seed), num_tokens, priority_class) for seed in range(NUM_STREAMS)]
    _wait(flights)
    duration_s = time.monotonic() - start_s
    num_received = sum(flight.num_tokens for flight in flights)
    assert num_received == NUM_STREAMS * num_tokens, f"{num_received} tokens came"
    return num_received / duration_s


def _prompt(seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1000, 20_000, PROMPT_TOKENS)]


def _wait(flights: Sequence[Flight]) -> None:
    for flight in flights:
        assert flight.ended.wait(_TIMEOUT_S), "a request did not end"


@contextmanager
def in_process(config: EngineConfig) -> Iterator[Send]:
    """Run the engine in a thread of this process; yield how to send it a request."""
    flights: dict[RequestId, Flight] = {}
    numbers = itertools.count()

    def emit(output: StepOutput) -> None:
        for request, _, _ in output.tokens:
            flights[request.request_id].note(1, has_ended=False)
        for request in output.finished:
            flights.pop(request.request_id).note(0, has_ended=True)

    loaded: Future[Runtime] = Future()

    def load_and_run() -> None:  # on one thread, as the engine process does
        runtime = load_runtime(config, make_tokenizer(config), emit, lambda *_: None, lambda *_: None)
        loaded.set_result(runtime)
        runtime.engine.run()

    thread = threading.Thread(target=load_and_run, daemon=True)
    thread.start()
    runtime = loaded.result(timeout=120.0)

    def send(prompt: Sequence[int], num_tokens: int, priority_class: PriorityClass) -> Flight:
        request_id = RequestId(str(next(numbers)))
        slo = Slo(LOOSE_SLO_MS / 1e3, LOOSE_SLO_MS / 1e3) if priority_class is PriorityClass.REAL_TIME else None
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        flight = flights[request_id] = Flight()
        runtime.engine.post(Submit(Request(request_id, priority_class, tuple(prompt), sampling, flight.sent_s, slo)))
        return flight

    try:
        yield send
    finally:
        runtime.engine.stop()
        thread.join()


@contextmanager
def through_triton(arguments: Sequence[str]) -> Iterator[dict[str, Send]]:
    """Start `bros-serve` with `arguments`; yield both ways to send it a request over one gRPC stream."""
    with running_server(arguments) as address, over_grpc(address.grpc_url) as ways:
        yield ways


@contextmanager
def over_grpc(grpc_url: str) -> Iterator[dict[str, Send]]:
    """Open one gRPC stream to a server; yield both ways to send it a request."""
    flights: dict[str, Flight] = {}
    numbers = itertools.count()

    def on_response(result: Any, error: InferenceServerException | None) -> None:
        assert error is None, error
        response = result.get_response()
        num_tokens = len(response.raw_output_contents[0]) // np.int32().itemsize  # of output_ids, all it asks for
        is_final = response.parameters["triton_final_response"].bool_param
        flights[response.id].note(num_tokens, is_final)

    with _lean_client(grpc_url) as client:
        client.start_stream(on_response)
        outputs = [grpc_client.InferRequestedOutput("output_ids")]

        def send(model: str, prompt: Sequence[int], num_tokens: int, priority_class: PriorityClass) -> Flight:
            request_id = str(next(numbers))
            inputs = _inputs(prompt, num_tokens, priority_class)
            flight = flights[request_id] = Flight()
            client.async_stream_infer(model, inputs, request_id=request_id, outputs=outputs)
            return flight

        def send_by_name(prompt: Sequence[int], num_tokens: int, priority_class: PriorityClass) -> Flight:
            return send(f"bros_{priority_class.value}", prompt, num_tokens, priority_class)

        yield {THROUGH_TRITON: partial(send, "bros"), BY_MODEL_NAME: send_by_name}
        client.stop_stream()


def _lean_client(url: str) -> grpc_client.InferenceServerClient:
    """Return a client that leaves the cores to the engine, being elsewhere another machine.

    Its new threads do not push others off a core when they wake up; the engine's threads exist already. gRPC reads in
    the waiting thread instead of an event engine's threads, which saves a quarter of the processor time.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc_client.InferenceServerClient(url, channel_args=[*unlimited, *channel_options(url)])


def _inputs(prompt: Sequence[int], num_tokens: int, priority_class: PriorityClass) -> list[Any]:
    tensors: dict[str, tuple[str, Any]] = {
        "input_ids": ("INT32", np.array(prompt, np.int32)),
        "max_tokens": ("INT32", np.array([num_tokens], np.int32)),
        "priority_class": ("BYTES", np.array([priority_class.value.encode()], np.object_)),
        "ttft_slo_ms": ("FP32", np.array([LOOSE_SLO_MS], np.float32)),
        "tpot_slo_ms": ("FP32", np.array([LOOSE_SLO_MS], np.float32)),
        "ignore_eos": ("BOOL", np.array([True])),
        "stream": ("BOOL", np.array([True])),
    }
    inputs = []
    for name, (datatype, array) in tensors.items():
        infer_input = grpc_client.InferInput(name, list(array.shape), datatype)
        infer_input.set_data_from_numpy(array)
        inputs.append(infer_input)
    return inputs


def serve_arguments(executor: ExecutorKind, num_threads: int, settings: Sequence[str] = ()) -> list[str]:
    """Return the arguments of `bros-serve` that describe the engine, of both ways."""
    num_kv_tokens = 2 * NUM_STREAMS * (PROMPT_TOKENS + STREAM_TOKENS)
    executors = {
        ExecutorKind.SIM: ["--set", f"sim.coefficients=[{SIM_STEP_S}, 0, 0, 0, 0]"],
        ExecutorKind.TORCH: ["--threads", str(num_threads), "--kv-tokens", str(num_kv_tokens)],
    }
    same_each_time = "scheduler.prefix_caching=false"  # the loads that are compared send the same prompts
    words = [word for setting in (same_each_time, *settings) for word in ("--set", setting)]
    return ["--executor", executor.value, *executors[executor], *words]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executor", choices=["torch", "sim"], default="torch", help="(default: %(default)s)")
    parser.add_argument("--threads", type=whole(), default=2, help="of the torch engine (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as of bros-serve")
    parser.add_argument("--rounds", type=whole(), default=5, help="rounds to measure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    parser.add_argument("--more", action="store_true", help="keep the rounds in FILE, if it measured the same")
    return parser


if __name__ == "__main__":
    sys.exit(main())
