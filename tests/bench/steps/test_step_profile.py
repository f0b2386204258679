"""A profiled step's parts are where its time goes, and the engine is as it was afterwards."""

from __future__ import annotations

from pathlib import Path

from backend.executors.torch_engine import compiled_ops, load
from backend.executors.torch_engine.compiled_ops import CompiledAttention
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.linear import Linear
from backend.executors.torch_engine.llama import LlamaModel
from bench.steps.step_profile import STEP_PARTS, profiled
from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request
from tests.backend.executors.torch_engine.test_families import settings_for


def test_parts_are_timed_without_overlap_and_the_engine_is_left_as_it_was(tmp_path: Path) -> None:
    executor = load(settings_for(save_tiny_model(tmp_path)), lambda _stage, _fraction: None)
    assert isinstance(executor, TorchExecutor)
    assert isinstance(executor.model, LlamaModel)
    assert isinstance(executor.model.ops.attention, CompiledAttention)
    originals = (Linear.__call__, compiled_ops.run_on_team)
    run, durations = executor.execute, []

    def timed_run(batch):  # type: ignore[no-untyped-def] # stands in for a method
        result = run(batch)
        durations.append(result.duration_s)
        return result

    executor.execute = timed_run  # type: ignore[method-assign] # to see every step's duration
    with profiled(executor.model.ops.attention) as profile:
        Runner(executor, Schedule(chunk=20)).run([make_request("r", [5] * 50, max_tokens=3)])
    assert all(profile.seconds[part] > 0 for part in STEP_PARTS)
    assert sum(profile.seconds.values()) < sum(durations)
    assert (Linear.__call__, compiled_ops.run_on_team) == originals
