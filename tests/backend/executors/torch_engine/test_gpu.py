"""What runs where a CUDA device is: the paged kernel against plain attention, and exactness. It has run nowhere yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.core.request import Request
from backend.executors.torch_engine import load
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.settings import Dtype, TorchSettings
from tests.backend.executors.torch_engine.models import reference_tokens, save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request
from tests.backend.executors.torch_engine.test_exactness import NUM_TOKENS, PROMPTS, SCHEDULES

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="a CUDA build of torch brings triton; this one has none")

from backend.executors.torch_engine.paged_attention import PagedAttention
from tests.backend.executors.torch_engine.paged_cases import CASES, CHUNKED, differing_tokens, error_ratio

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_plain_attention_within_rounding(case: str) -> None:
    assert error_ratio(CASES[case], CUDA) < 1.0


@pytest.mark.parametrize(("name", "chunk"), CHUNKED)
def test_float32_attention_is_bitwise_the_same_in_chunks(name: str, chunk: int) -> None:
    assert differing_tokens(name, chunk, CUDA) == []


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(model_directory: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    return [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def executor(model_directory: Path) -> TorchExecutor:
    return load_on_device(model_directory, Dtype.FLOAT32)


def load_on_device(model_directory: Path, dtype: Dtype) -> TorchExecutor:
    settings = TorchSettings(
        model_path=str(model_directory),
        device="cuda",
        dtype=dtype,
        num_kv_tokens=40_000,
        host_kv_gib=0.04,
        max_tokens_per_step=16_384,
    )
    executor = load(settings, lambda _stage, _fraction: None)
    assert isinstance(executor, TorchExecutor)
    return executor


def test_the_paged_kernel_is_chosen(executor: TorchExecutor) -> None:
    assert isinstance(executor.model, LlamaModel)
    assert isinstance(executor.model.ops.attention, PagedAttention)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_float32_tokens_equal_the_library_under(
    schedule: Schedule, executor: TorchExecutor, expected: list[list[int]]
) -> None:
    assert Runner(executor, schedule).run(requests()) == expected


def test_bf16_requests_get_all_their_tokens_in_mixed_steps(model_directory: Path) -> None:
    executor = load_on_device(model_directory, Dtype.BF16)
    tokens = Runner(executor, SCHEDULES["fuzz 3, preempted"]).run(requests())
    assert [len(of_one) for of_one in tokens] == [NUM_TOKENS] * len(PROMPTS)


def requests() -> list[Request]:
    return [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]
