"""The paged attention kernel without a GPU: run in Triton's interpreter, and compiled for devices that are not here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.executors.torch_engine.attention import AttentionShape
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from tests.backend.executors.torch_engine.models import reference_tokens, save_tiny_model
from tests.backend.executors.torch_engine.test_compiled_ops import make_inputs
from tests.backend.executors.torch_engine.test_exactness import SCHEDULES

if find_spec("triton") is None:
    reason = "no package triton (700 MB, so not among the tools): pip install --no-deps triton==3.7.1 # torch 2.13's"
    pytest.skip(reason, allow_module_level=True)

from backend.executors.torch_engine.paged_attention import PagedAttention, paged_attention
from tests.backend.executors.torch_engine.interpreted import NUM_TOKENS, PROMPTS
from tests.backend.executors.torch_engine.paged_cases import CASES, CHUNKED

SMALLEST_SHARED_BYTES = 99 * 1024  # what a block may use where it is least: compute capability 8.6 and 8.9
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def interpreted(model_directory: Path) -> dict[str, Any]:
    """Run all in one process of its own: a kernel is interpreted where the variable was set when it was defined."""
    command = [sys.executable, "-m", "tests.backend.executors.torch_engine.interpreted", str(model_directory)]
    result = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_plain_attention_within_rounding(case: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["errors"][case] < 1.0


@pytest.mark.parametrize(("name", "chunk"), CHUNKED)
def test_float32_attention_is_bitwise_the_same_in_chunks(name: str, chunk: int, interpreted: dict[str, Any]) -> None:
    assert interpreted["differing"][f"{name}, {chunk}"] == []


@pytest.fixture(scope="module")
def expected(model_directory: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    return [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_equal_the_library_under(schedule: str, interpreted: dict[str, Any], expected: list[list[int]]) -> None:
    assert interpreted["tokens"][schedule] == expected


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "shape"),
    [
        (torch.float32, 128, 80, AttentionShape(0.1)),
        (torch.bfloat16, 256, 90, AttentionShape(0.1, window=4096, softcap=50.0)),
        (torch.float16, 80, 86, AttentionShape(0.1)),
    ],
)
def test_the_kernel_compiles_for(
    dtype: torch.dtype,
    head_size: int,
    capability: int,
    shape: AttentionShape,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for(capability, dtype, head_size, shape)
    assert compiled.metadata.shared <= SMALLEST_SHARED_BYTES
    has_tensor_cores = re.search(r"\bw?g?mma\.", compiled.asm["ptx"]) is not None
    assert has_tensor_cores == (dtype is not torch.float32), "float32 must not go through TF32"


def compile_for(capability: int, dtype: torch.dtype, head_size: int, shape: AttentionShape) -> Any:
    """Compile what the engine would launch for a long chunk."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    attention = PagedAttention(KVPool(KVShape(1, 2, head_size, dtype), 16, 0, torch.device("cpu")), num_heads=6)
    attention.begin(make_inputs([(0, 100)]))
    constants = attention.constants(shape)
    signature = dict.fromkeys(("out", "queries", "pool"), POINTERS[dtype])
    signature |= {"table": "*i32", "tiles": "*i32", "table_width": "i32", "query_stride": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(5)}
    return compile(ASTSource(paged_attention, signature, constants, aligned), target=GPUTarget("cuda", capability, 32))
