"""Loading: what does not fit or is not supported is said before anything is computed; fallbacks work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.core.errors import ConfigError, ExecutorError
from backend.executors.torch_engine import load, memory
from backend.executors.torch_engine.attention import TorchAttention
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.loader import load_executor
from backend.executors.torch_engine.processor import Processor
from backend.executors.torch_engine.settings import AttentionKernel, ModelPath, TorchSettings, WeightFormat
from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request
from tests.backend.executors.torch_engine.test_families import settings_for

COMPILED_MODULE = "backend.executors.torch_engine.compiled_ops"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


def load_quietly(settings: TorchSettings) -> TorchExecutor:
    executor = load(settings, lambda _stage, _fraction: None)
    assert isinstance(executor, TorchExecutor)
    return executor


def test_progress_grows_to_one(llama: Path) -> None:
    stages: list[tuple[str, float]] = []
    load(settings_for(llama), lambda stage, fraction: stages.append((stage, fraction)))
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert stages[-1] == ("ready", 1.0)


def test_kv_that_does_not_fit_names_the_bytes_needed(llama: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"does not fit: weights need \d+ bytes and KV \d+ .*in all; cpu has \d+ free"
    ):
        load_quietly(settings_for(llama, num_kv_tokens=1 << 40))


@pytest.mark.parametrize("layers", [ModelPath.OWN, ModelPath.LIBRARY])
def test_model_that_does_not_fit_names_the_bytes_of_its_weights(
    layers: ModelPath, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
    with pytest.raises(ConfigError, match=r"weights need (\d{6}) bytes .* has 1000 free"):
        load_quietly(settings_for(llama, layers=layers))


def test_capacity_follows_the_settings(llama: Path) -> None:
    capacity = load_quietly(settings_for(llama, num_kv_tokens=1000, max_model_len=500)).capacity()
    assert (capacity.num_blocks, capacity.block_size, capacity.max_seq_len) == (62, 16, 500)
    assert capacity.num_host_slots > 0
    assert capacity.host_copy_s_per_token > 0


def test_kv_gib_is_turned_into_blocks(llama: Path) -> None:
    executor = load_quietly(settings_for(llama, num_kv_tokens=None, kv_gib=0.01))
    pool_bytes = executor.pool.storage.nbytes
    assert 0.0095 < pool_bytes / (1 << 30) <= 0.01


def test_without_numba_auto_falls_back_to_torch_and_says_so(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, COMPILED_MODULE, None)
    executor = load_quietly(settings_for(llama))
    assert isinstance(executor.model, LlamaModel)
    assert "no compiled kernels" in caplog.text
    plain = Runner(executor, Schedule()).run([make_request("r", [5, 6, 7], max_tokens=5)])
    monkeypatch.undo()
    compiled = Runner(load_quietly(settings_for(llama)), Schedule()).run([make_request("r", [5, 6, 7], max_tokens=5)])
    assert plain == compiled


def test_without_numba_compiled_kernels_are_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, COMPILED_MODULE, None)
    with pytest.raises(ConfigError, match="needs numba"):
        load_quietly(settings_for(llama, attention=AttentionKernel.COMPILED))


def test_bf16_products_are_refused_by_a_processor_without_them(llama: Path) -> None:
    processor = Processor("forged", True, False, False, False, has_onednn=True)
    with pytest.raises(ConfigError, match=r"torch\.weights: 'bf16' needs AVX-512 and oneDNN; this processor has AVX2"):
        load_executor(settings_for(llama, weights=WeightFormat.BF16), lambda *_: None, processor)


def test_own_layers_are_refused_for_other_families(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plain Llama"):
        load_quietly(settings_for(save_tiny_model(tmp_path, "Qwen2"), layers=ModelPath.OWN))


def test_directory_without_weights_is_named(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load_quietly(settings_for(tmp_path))


def test_failing_step_is_an_executor_error_and_the_next_one_runs(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = load_quietly(settings_for(llama))

    def fail(*_arguments: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(executor.model, "forward", fail)
        with pytest.raises(ExecutorError, match="1 tokens failed: out of memory"):
            Runner(executor, Schedule()).run([make_request("r", [5], max_tokens=1)])
    assert len(Runner(executor, Schedule()).run([make_request("r", [5], max_tokens=3)])[0]) == 3


def test_step_larger_than_the_buffers_is_caught(llama: Path) -> None:
    executor = load_quietly(settings_for(llama, max_tokens_per_step=8))
    with pytest.raises(ExecutorError, match="9 tokens"):
        Runner(executor, Schedule()).run([make_request("r", [5] * 9, max_tokens=1)])


@pytest.mark.parametrize("layers", [ModelPath.OWN, ModelPath.LIBRARY])
def test_a_token_id_that_the_model_has_no_row_for_fails_its_step_only(llama: Path, layers: ModelPath) -> None:
    executor = load_quietly(settings_for(llama, layers=layers))
    vocab_size = executor.capacity().vocab_size
    assert vocab_size == json.loads((llama / "config.json").read_text())["vocab_size"]
    with pytest.raises(ExecutorError, match=f"token ids 5 to {vocab_size}"):
        Runner(executor, Schedule()).run([make_request("r", [5, vocab_size], max_tokens=1)])
    assert len(Runner(executor, Schedule()).run([make_request("r", [5, vocab_size - 1], max_tokens=2)])[0]) == 2


def test_closing_twice_is_harmless(llama: Path) -> None:
    executor = load_quietly(settings_for(llama))
    executor.close()
    executor.close()


def test_torch_attention_can_be_asked_for(llama: Path) -> None:
    executor = load_quietly(settings_for(llama, attention=AttentionKernel.TORCH))
    assert isinstance(executor.model, LlamaModel)
    assert isinstance(executor.model.ops.attention, TorchAttention)


@pytest.mark.parametrize(("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_spin_shortly_unless_the_operator_says_otherwise(given: dict[str, str], spins: str) -> None:
    program = (
        "import sys, os; from backend.executors.torch_engine import say_how_threads_wait; say_how_threads_wait(); "
        "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", spins]  # libgomp reads it when torch is loaded, which is later
