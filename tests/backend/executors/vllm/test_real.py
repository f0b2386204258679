"""A real vLLM in its own environment: our scheduler inside gives the tokens of vLLM's own, token for token."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.vllm.places import ROOT, vllm_python
from tests.backend.executors.vllm.table import SCHEDULES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

# No module of ours as the main one: a rank's process imports that first, and then vLLM finds our compiled loops there.
BLOCK_SIZE = 32  # of `real`
NO_COMPILER = {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": "/nonexistent"}  # so that compiling fails
RUN = "from tests.backend.executors.vllm.real import main; main()"
PREEMPTING = [name for name in SCHEDULES if "preempted" in name]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vllm_python()  # before a model is made for nobody
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), head_dim=32)


def run_real(model: Path, *options: str) -> dict[str, Any]:
    command = [str(vllm_python()), "-c", RUN, str(model), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **NO_COMPILER}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="session")
def found(model: Path) -> dict[str, Any]:
    return run_real(model)


@pytest.mark.parametrize("name", [*SCHEDULES, "bros"])
def test_tokens_of_50_prompts_equal_those_of_vllms_own_scheduler_under(name: str, found: dict[str, Any]) -> None:
    assert found["num_distinct"] == 50
    schedule = found["schedules"][name]
    assert schedule["wrong"] == []
    assert (schedule["num_cancelled"], schedule["honours_plans"], schedule["free_blocks"]) == (5, True, 119)


def test_seeds_decide_whatever_else_runs(found: dict[str, Any]) -> None:
    first, again, other = found["seeds"]
    assert first == again != other


def test_a_seed_draws_the_same_after_a_prompt_of_several_steps(found: dict[str, Any]) -> None:
    """vLLM 0.32 ends its engine there: it takes back what an unfinished prompt drew, which a CPU generator cannot."""
    whole, in_steps = found["long_seeds"]
    assert whole == in_steps
    assert len(whole) == 8


def test_nothing_that_a_client_may_ask_for_is_compiled_in_a_step(found: dict[str, Any]) -> None:
    """vLLM leaves sampling and log-probabilities to PyTorch's compiler: 17 s for the first client, and for all others.
    Without a C++ compiler it ended the engine."""
    assert found["num_log_probs"] == [4, 4, 4]


def test_requests_of_different_salts_share_no_kv(found: dict[str, Any]) -> None:
    first, other, none, again = found["cached_by_salt"]
    assert (first, other, none) == (0, 0, 0)
    assert again == 96


def test_an_error_of_ours_ends_no_request(found: dict[str, Any]) -> None:
    assert found["fall_back"] == {"ends": ["length"], "honours_plans": False}


@pytest.fixture(scope="session")
def in_a_small_pool(model: Path) -> dict[str, Any]:
    return dict(run_real(model, "--num-blocks", "60", "--schedules", *PREEMPTING)["schedules"])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_connector_gives_back_what_the_prefix_cache_lost(
    kind: str, model: Path, in_a_small_pool: dict[str, Any]
) -> None:
    """Asynchronous: a request waits in a queue of vLLM's own for what comes in, with blocks but without a step."""
    schedules = run_real(model, "--num-blocks", "60", "--connector", kind, "--schedules", *PREEMPTING, "bros")[
        "schedules"
    ]
    for each in schedules.values():
        assert each["wrong"] == []
        assert (each["num_cancelled"], each["honours_plans"], each["free_blocks"]) == (5, True, 59)
    without, kept = (
        {key: sum(found[name][key] for name in PREEMPTING) for key in ("recomputed", "given_back", "num_preempted")}
        for found in (in_a_small_pool, schedules)
    )
    assert kept["recomputed"] < BLOCK_SIZE * kept["num_preempted"], "at most what a victim had in an unfinished block"
    assert without["recomputed"] > BLOCK_SIZE * without["num_preempted"]
    assert kept["given_back"] > without["given_back"]


def test_the_prefix_cache_gives_back_what_victims_computed(model: Path, found: dict[str, Any]) -> None:
    without = run_real(model, "--no-prefix-cache", "--schedules", *PREEMPTING)["schedules"]
    for name in PREEMPTING:
        kept = found["schedules"][name]
        assert kept["num_preempted"] > 0 < without[name]["num_preempted"]
        assert without[name]["given_back"] == 0 < kept["given_back"]
        assert kept["recomputed"] < without[name]["recomputed"]


def test_two_ranks_give_the_same_tokens(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # vLLM wants a memory node for each rank, or this
    found = run_real(model, "--ranks", "2", "--schedules", "chunks of 64", "fuzz 3, preempted", "bros")
    assert [schedule["wrong"] for schedule in found["schedules"].values()] == [[], [], []]
