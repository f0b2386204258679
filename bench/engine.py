"""Time the torch engine's steps, and their floors in the same run.

    python -m bench.engine --out bench/results/engine-bf16.json
    python -m bench.engine --weights dense --out bench/results/engine-dense.json
    python -m bench.engine --dtype float32 --out bench/results/engine-float32.json

Cases: decode at several batches with 256-token contexts, prefill in chunks, a mixed step. Three measurements per case
are interleaved:

- the whole step (median);
- the step timed from inside (`step_profile`), whose parts and rest sum up to that step;
- the floor of its matrix products: the products alone, with the same weights in the same order, as cold as in the step.

The byte floor of attention is bytes of K and V / the machine's read bandwidth. Some cases then run through the
library's layers, with dense weights.
"""

# ruff: noqa: E402 - what torch reads while it loads is said before

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.core.numbers import whole
from backend.executors.torch_engine import load, say_how_threads_wait
from bench.common.command import as_command

say_how_threads_wait()  # before torch is imported

import numpy as np
import torch

from backend.core.plan import StepBatch
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams
from backend.executors.torch_engine.compiled_ops import CompiledAttention
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.settings import Dtype, ModelPath, TorchSettings, WeightFormat
from bench.common.provenance import provenance
from bench.report.engine import STEP_PARTS, bars
from bench.steps.step_profile import profiled

CONTEXT = 256
DECODE_BATCHES = (1, 2, 4, 8, 16, 32)
LIBRARY_CASES = frozenset({"decode 1", "decode 8", "decode 16", "decode 32", "prefill 512"})
PREFILL_CHUNK = 512
PREFILLS = (128, 512, 2048)
_NUM_KV_TOKENS = 32_768
_ROWS = 64
_CASE_S, _MIN_REPEATS = 2.0, 5  # repeats of a case stop after this time, but not before this number


@dataclass(frozen=True, slots=True)
class Case:
    """A step: `starts[i]` positions of sequence i are cached, `num_new[i]` are computed."""

    name: str
    starts: Sequence[int]
    num_new: Sequence[int]


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="Hugging Face directory or GGUF file (default: SmolLM2-135M)")
    parser.add_argument("--dtype", choices=["bf16", "float32"], default="bf16", help="(default: %(default)s)")
    parser.add_argument(
        "--weights", choices=["auto", "dense", "bf16", "float32"], default="auto", help="(default: %(default)s)"
    )
    parser.add_argument("--threads", type=whole(0), default=0, help="0: all cores (default: %(default)s)")
    parser.add_argument("--repeats", type=whole(), default=30, help="steps timed per case (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of token ids and block order (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    document = measure(arguments)
    text = json.dumps(document, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else table(document))
    return 0


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the model, time every case and return one document."""
    started_s = time.perf_counter()
    settings = TorchSettings(
        model_path=arguments.model,
        dtype=Dtype(arguments.dtype),
        weights=WeightFormat(arguments.weights),
        num_threads=arguments.threads,
        num_kv_tokens=_NUM_KV_TOKENS,
        max_tokens_per_step=PREFILL_CHUNK,
    )
    executor = _loaded(settings)
    load_s = time.perf_counter() - started_s
    engine = _Engine(executor, arguments.seed)
    cases = [_timed(engine, case, arguments.repeats) for case in _cases()]
    prefills = [_prefill(engine, length, arguments.repeats) for length in PREFILLS]
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bandwidth = read_bandwidth_bytes_per_s()
    for case in cases:
        case["attention_floor_s"] = case["kv_bytes_read"] / bandwidth
    library = _library_cases(dataclasses.replace(settings, layers=ModelPath.LIBRARY), engine, arguments.repeats)
    return {
        "provenance": provenance(),
        "config": {
            "dtype": arguments.dtype,
            "weights": arguments.weights,
            "threads": torch.get_num_threads(),
            "repeats": arguments.repeats,
            "seed": arguments.seed,
            "context": CONTEXT,
            "prefill_chunk": PREFILL_CHUNK,
        },
        "load_s": load_s,
        "read_bandwidth_gb_per_s": bandwidth / 1e9,
        "kv_pool_bytes": _NUM_KV_TOKENS * engine.model_kv_bytes,
        "peak_memory_bytes": peak_bytes,
        "cases": cases,
        "prefills": prefills,
        "library": library,
    }


def table(document: dict[str, Any]) -> str:
    """Return the document as text, times in milliseconds."""
    columns = ("step", *STEP_PARTS, "rest", "products_floor", "attention_floor")
    lines = [f"{'ms':24}" + "".join(f"{column.replace('_', ' '):>16}" for column in columns)]
    for case in document["cases"]:
        values = (case[f"{column}_s"] * 1e3 for column in columns)
        lines.append(f"{case['name']:24}" + "".join(f"{value:16.2f}" for value in values))
    lines += [f"library layers, {case['name']}: {case['step_s'] * 1e3:.2f}" for case in document["library"]]
    lines.append(f"loaded in {document['load_s']:.1f} s")
    return "\n".join(lines + bars(document))


def _loaded(settings: TorchSettings) -> TorchExecutor:
    executor = load(settings, lambda _stage, _fraction: None)
    assert isinstance(executor, TorchExecutor)
    return executor


def _library_cases(settings: TorchSettings, engine: _Engine, repeats: int) -> list[dict[str, Any]]:
    """Time steps through the library's layers; `engine` makes the same batches as for our own."""
    executor = _loaded(settings)
    executor.pool.storage.fill_(0.1)
    rows = []
    for case in _cases():
        if case.name in LIBRARY_CASES:
            batch = engine.batch(case)
            executor.execute(batch)
            num_repeats = _repeats_within(executor.execute(batch).duration_s, repeats)
            step_s = statistics.median(executor.execute(batch).duration_s for _ in range(num_repeats))
            rows.append({"name": case.name, "step_s": step_s})
    return rows


def read_bandwidth_bytes_per_s(num_bytes: int = 1 << 28) -> float:
    """Return how fast memory is read: the best of some sums over an array larger than the usual caches."""
    data = torch.ones(num_bytes // 4)
    return num_bytes / min(_durations(lambda: data.sum(), 10))


class _Engine:
    """The executor, requests to fill its steps, and the parts of its model."""

    def __init__(self, executor: TorchExecutor, seed: int) -> None:
        self.executor = executor
        self.random = np.random.default_rng(seed)
        capacity = executor.capacity()
        model = executor.model
        assert isinstance(model, LlamaModel), "the bench times our own layers"
        self.weights = model.weights
        assert isinstance(model.ops.attention, CompiledAttention), "the bench times the compiled kernels"
        self.attention = model.ops.attention
        executor.pool.storage.fill_(0.1)  # touched, so that the peak memory holds all of it
        self.model_kv_bytes = executor.pool.shape.bytes_per_token
        self.max_len = max(PREFILLS)
        blocks = self.random.permutation(capacity.num_blocks)[: _ROWS * self.max_len // capacity.block_size]
        blocks = np.resize(blocks, _ROWS * self.max_len // capacity.block_size)
        slots = blocks[:, None] * capacity.block_size + np.arange(capacity.block_size)
        self.slot_table = slots.reshape(_ROWS, self.max_len).astype(np.int32)

    def profiled_step(self, batch: StepBatch) -> dict[str, float]:
        """Run a step timed from inside; return its seconds, those of its parts, and the rest."""
        with profiled(self.attention) as profile:
            step_s = self.executor.execute(batch).duration_s
        parts = profile.seconds
        return {
            "profiled_step_s": step_s,
            **{f"{part}_s": parts[part] for part in STEP_PARTS},
            "rest_s": step_s - sum(parts.values()),
        }

    def batch(self, case: Case) -> StepBatch:
        """Return the case as a step; every sequence samples, as it reaches its last known token."""
        requests = []
        for row, (start, num_new) in enumerate(zip(case.starts, case.num_new, strict=True)):
            prompt = tuple(self.random.integers(3, 40_000, start + num_new).tolist())
            request = Request(RequestId(f"r{row}"), PriorityClass.REAL_TIME, prompt, SamplingParams(), 0.0)
            request.num_computed, request.row = start, row
            requests.append(request)
        return StepBatch(requests, list(case.num_new), self.slot_table)


def _cases() -> list[Case]:
    decodes = [Case(f"decode {n}", [CONTEXT - 1] * n, [1] * n) for n in DECODE_BATCHES]
    return [
        *decodes,
        Case("prefill 128", [0], [128]),
        Case("prefill 512", [0], [512]),
        Case("prefill 512 after 1536", [1536], [512]),
        Case("16 decodes + chunk 128", [CONTEXT - 1] * 16 + [0], [1] * 16 + [128]),
    ]


def _timed(engine: _Engine, case: Case, repeats: int) -> dict[str, Any]:
    """Time a case, from outside and from inside, and the floor of its products."""
    batch = engine.batch(case)
    num_tokens, num_sampled = sum(case.num_new), len(case.num_new)
    steps, profiles, floors = [], [], []
    engine.executor.execute(batch)
    for _ in range(_repeats_within(engine.executor.execute(batch).duration_s, repeats)):
        steps.append(engine.executor.execute(batch).duration_s)
        profiles.append(engine.profiled_step(batch))
        floors += _durations(lambda: _run_products(engine, num_tokens, num_sampled), 1, warm_up=False)
    middle = sorted(profiles, key=lambda profile: profile["profiled_step_s"])[len(profiles) // 2]
    context_tokens = sum(start + num_new for start, num_new in zip(case.starts, case.num_new, strict=True))
    return {
        "name": case.name,
        "num_tokens": num_tokens,
        "step_s": statistics.median(steps),
        **middle,
        "products_floor_s": statistics.median(floors),
        "kv_bytes_read": context_tokens * engine.model_kv_bytes,
    }


def _run_products(engine: _Engine, num_tokens: int, num_sampled: int) -> None:
    weights, dtype = engine.weights, engine.executor.pool.shape.dtype
    hidden = torch.zeros((num_tokens, weights.embedding.shape[1]), dtype=dtype)
    for layer in weights.layers:
        layer.qkv(hidden)
        layer.output(hidden)
        gate_up = layer.gate_up(hidden)
        layer.down(gate_up[:, : gate_up.shape[1] // 2].contiguous())
    weights.head(hidden[:num_sampled])


def _prefill(engine: _Engine, length: int, repeats: int) -> dict[str, Any]:
    """Time a whole prompt, in steps of at most PREFILL_CHUNK tokens."""
    starts = range(0, length, PREFILL_CHUNK)
    batches = [engine.batch(Case("", [start], [min(PREFILL_CHUNK, length - start)])) for start in starts]
    durations = _durations(lambda: [engine.executor.execute(batch) for batch in batches], max(3, repeats // 6))
    return {
        "length": length,
        "seconds": statistics.median(durations),
        "tokens_per_s": length / statistics.median(durations),
    }


def _repeats_within(duration_s: float, repeats: int) -> int:
    return max(_MIN_REPEATS, min(repeats, int(_CASE_S / duration_s)))


def _durations(run: Callable[[], object], repeats: int, *, warm_up: bool = True) -> list[float]:
    """Run once to warm up, unless that is done, then return the seconds of each further run."""
    if warm_up:
        run()
    durations = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started_s)
    return durations


if __name__ == "__main__":
    sys.exit(main())
