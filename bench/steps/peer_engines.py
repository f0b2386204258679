"""The two engines of `bench.peers`: each computes a case by name, such as `decode 8` or `prefill 512`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backend.core.plan import StepBatch
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams
from backend.executors.torch_engine import load, say_how_threads_wait
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.settings import TorchSettings
from bench.peers import CHUNK, CONTEXT, DECODES, PREFILLS, model_path
from bench.steps.llama_cpp import LlamaCpp

_NUM_KV_TOKENS = 32_768


class BrosEngine:
    """Our torch engine, stepped without a scheduler."""

    def __init__(self, threads: int) -> None:
        say_how_threads_wait()
        settings = TorchSettings(num_threads=threads, num_kv_tokens=_NUM_KV_TOKENS, max_tokens_per_step=CHUNK)
        executor = load(settings, lambda _stage, _fraction: None)
        assert isinstance(executor, TorchExecutor)
        self.executor = executor
        self.description = f"bros, torch engine: {executor.capacity().description}"
        self._random = np.random.default_rng(0)
        width = max(PREFILLS)
        blocks = self._random.permutation(_NUM_KV_TOKENS // 16)
        slots = (blocks[:, None] * 16 + np.arange(16)).reshape(-1)
        rows = [np.resize(slots[i * CONTEXT :], width) for i in range(max(DECODES))]
        self._slot_table = np.stack(rows).astype(np.int32)
        executor.pool.storage.fill_(0.1)

    def run(self, case: str) -> float:
        """Return the seconds of a step, or of a prompt in chunks."""
        kind, number = case.split()
        count = int(number)
        if kind == "decode":
            return self.step([CONTEXT] * count, [1] * count)
        return sum(self.step([start], [min(CHUNK, count - start)]) for start in range(0, count, CHUNK))

    def floors(self) -> dict[str, float]:
        """Return the seconds that memory (decodes) or arithmetic (prefills) alone would take."""
        import torch

        data = torch.ones(1 << 26)
        bandwidth = data.nbytes / _best(data.sum)
        shape = self.executor.pool.shape
        dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        size = 2048
        x = torch.ones((size, size), dtype=dtype)
        flops_per_s = 2 * size**3 / _best(lambda: x @ x)
        parameters = 106e6  # of SmolLM2-135M's layers; its head runs on one token of a prompt
        file_bytes = model_path().stat().st_size
        decodes = {f"decode {n}": (file_bytes + n * CONTEXT * shape.bytes_per_token) / bandwidth for n in DECODES}
        return decodes | {f"prefill {n}": 2 * parameters * n / flops_per_s for n in PREFILLS}

    def step(self, starts: list[int], num_new: list[int]) -> float:
        """Return the seconds of one step; `starts` positions of each sequence are cached, `num_new` are computed."""
        requests = []
        for row, (start, new) in enumerate(zip(starts, num_new, strict=True)):
            prompt = tuple(self._random.integers(100, 40_000, start + new).tolist())
            request = Request(RequestId(f"r{row}"), PriorityClass.REAL_TIME, prompt, SamplingParams(), 0.0)
            request.num_computed, request.row = start, row
            requests.append(request)
        return self.executor.execute(StepBatch(requests, num_new, self._slot_table)).duration_s


class LlamaCppEngine:
    """llama.cpp, stepped through its C interface; decodes and prefills have contexts of their own."""

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        self._engines = {kind: LlamaCpp(folder, variant, model_path(), threads) for kind in ("decode", "prefill")}
        self.description = self._engines["decode"].description
        self._engines["decode"].open_context(2 * CONTEXT, max(DECODES), CHUNK)
        for sequence in range(max(DECODES)):
            self._engines["decode"].prefill(CONTEXT, sequence)
        self._engines["prefill"].open_context(max(PREFILLS), 1, CHUNK)

    def run(self, case: str) -> float:
        """Return the seconds of a step, or of a prompt in chunks."""
        kind, number = case.split()
        if kind == "decode":
            return self._engines[kind].decode(int(number), CONTEXT)
        return self._engines[kind].prefill(int(number))

    def floors(self) -> dict[str, float]:
        """The floors are the machine's; our own engine's process measures them."""
        raise NotImplementedError


def _best(run: Callable[[], object]) -> float:
    """Return the least seconds of some calls."""
    durations = []
    for _ in range(8):
        started_s = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started_s)
    return min(durations)
