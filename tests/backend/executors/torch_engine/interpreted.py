"""Runs the paged kernel in Triton's interpreter (TRITON_INTERPRET=1, a process of its own) and prints what came out.

    TRITON_INTERPRET=1 python -m tests.backend.executors.torch_engine.interpreted MODEL_DIRECTORY

One JSON object: `errors` and `differing` by case, `tokens` by schedule. Triton 3.7's interpreter has two faults. It
multiplies the bits of bf16 as integers. It loses the carry where float32 rounds up to bf16. This file mends both.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from backend.core.request import Request
from backend.executors.torch_engine import load
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.layer_ops import TorchLayerOps
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.paged_attention import PagedAttention
from backend.executors.torch_engine.settings import AttentionKernel, Dtype, TorchSettings
from tests.backend.executors.torch_engine.models import VOCAB_SIZE
from tests.backend.executors.torch_engine.paged_cases import CASES, CHUNKED, differing_tokens, error_ratio
from tests.backend.executors.torch_engine.schedules import Runner, make_request, random_prompts
from tests.backend.executors.torch_engine.test_exactness import SCHEDULES

CPU = torch.device("cpu")
NUM_TOKENS = 5
PROMPTS = list(random_prompts(2, 36, VOCAB_SIZE))


def main() -> None:
    mend_interpreter()
    found = {
        "errors": {name: error_ratio(case, CPU) for name, case in CASES.items()},
        "differing": {f"{name}, {chunk}": differing_tokens(name, chunk, CPU) for name, chunk in CHUNKED},
        "tokens": tokens_by_schedule(sys.argv[1]),
    }
    print(json.dumps(found))


def tokens_by_schedule(model_directory: str) -> dict[str, list[list[int]]]:
    """Serve the prompts by the kernel, in float32, under every schedule of `test_exactness`."""
    settings = TorchSettings(
        model_path=model_directory,
        dtype=Dtype.FLOAT32,
        attention=AttentionKernel.TORCH,
        num_kv_tokens=1024,
        host_kv_gib=0.01,
        max_model_len=128,
        num_threads=1,
    )
    executor = load(settings, lambda _stage, _fraction: None)
    assert isinstance(executor, TorchExecutor)
    assert isinstance(executor.model, LlamaModel)
    assert isinstance(executor.model.ops, TorchLayerOps)
    executor.model.ops.attention = PagedAttention(executor.pool, executor.model.ops.config.num_heads)
    return {name: Runner(executor, schedule).run(requests()) for name, schedule in SCHEDULES.items()}


def requests() -> list[Request]:
    return [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]


def mend_interpreter() -> None:
    """Make the interpreter's bf16 right: convert by torch, and multiply bf16 values in float32."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def mended_convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.bfloat16, tl.float32):
            return data.astype(np.uint32) << 16
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.array(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, rounding)

    def mended_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *rest)

    interpreter._convert_float = mended_convert
    interpreter.InterpreterBuilder.create_dot = mended_dot


if __name__ == "__main__":
    main()
