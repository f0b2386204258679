"""A step of decodes that is repeated is what the policy would have planned, and nobody can tell it from a plan."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from backend.core.request import Request
from backend.executors.foreign.decodes import Decodes, decode_sums
from backend.policy.bros.policy import Bros
from tests.backend.executors.vllm.driver import Rig, make_rig
from tests.backend.factories import be, rt
from tests.backend.policy.state.test_table_loops import filled

NUM_RUNS = 8
FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the time that a token takes
REPEATED, REFUSED = "repeated", "refused for its time"


def random_run(seed: int) -> tuple[Rig, list[Request]]:
    """Return an engine with any room and objectives around the time of its steps, and what comes to it."""
    draw = random.Random(seed)
    rig = make_rig(
        num_blocks=draw.choice((40, 90, 400)),
        block_size=draw.choice((4, 16)),
        max_seqs=draw.choice((8, 16)),
        be_min_share=draw.choice((0.0, 0.05)),
        latency_coefficients=(0.01, 2e-4, 1e-7, 0.0, 0.0, 0.0),
    )
    requests = []
    for index in range(12):
        knobs = {"arrival_s": draw.choice((0.0, 0.5 * draw.random())), "request_id": f"{seed}-{index}"}
        num_prompt, max_tokens = draw.randint(2, 30), draw.randint(4, 30)
        if draw.random() < 0.6:
            requests.append(rt(num_prompt, max_tokens, tpot_slo_s=draw.choice((0.0115, 0.0125, 0.05)), **knobs))
        else:
            requests.append(be(num_prompt, max_tokens, deadline_s=draw.choice((None, None, None, 0.5)), **knobs))
    return rig, requests


def watch(rig: Rig, seen: Counter[str]) -> None:
    """Compare each repeated step of `rig` with the plan of the policy, on this machine and on slower ones; count."""
    pilot, latency = rig.steering.pilot, rig.steering.pilot.view.latency
    again = pilot._again
    assert isinstance(pilot.policy, Bros)

    def compared(start_s: float) -> Decodes | None:
        decodes, c1 = again(start_s), latency.c1
        if decodes is None:
            return None
        pilot.mirror.settle()
        plan = pilot.policy.plan(pilot.view, start_s)
        assert (plan.num_new_tokens, plan.budget_s) == (decodes.plan.num_new_tokens, decodes.plan.budget_s)
        assert plan.predicted_s == pytest.approx(decodes.plan.predicted_s, rel=1e-9)
        assert not [*plan.reclaims, *plan.restores]
        assert plan.slots is not None
        assert sorted(plan.slots.rows) == decodes.rows.tolist()
        for factor in FACTORS:
            latency.c1 = factor * c1
            compare_budgets(decodes, start_s)
        latency.c1 = c1
        return decodes

    def compare_budgets(decodes: Decodes, start_s: float) -> None:
        num, predicted_s = len(decodes.rows), latency.predict_s(decodes.features)
        budget_s = pilot.policy.decode_budget_s(pilot.view, decodes.rt_rows, num, predicted_s, start_s)  # type: ignore[attr-defined]  # of Bros
        plan = pilot.policy.plan(pilot.view, start_s)
        seen[REFUSED if budget_s is None else REPEATED] += 1
        assert (len(plan.num_new_tokens) < num) is (budget_s is None)
        assert budget_s in (None, plan.budget_s)

    pilot._again = compared  # type: ignore[method-assign]  # a probe


def test_a_repeated_step_is_the_one_that_the_policy_plans() -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_RUNS):
        rig, requests = random_run(seed)
        watch(rig, seen)
        rig.play(requests)
        assert rig.engine.honours_plans, f"seed {seed}: {rig.steering.error}"
    assert seen[REPEATED] > 10 * NUM_RUNS, "hardly any step was repeated"
    assert seen[REFUSED] > 3 * NUM_RUNS, "hardly any step was too long"


def test_repeated_steps_leave_what_planned_ones_leave() -> None:
    for seed in range(NUM_RUNS):
        rigs = []
        for does_repeat in (True, False):
            rig, requests = random_run(seed)
            if not does_repeat:
                rig.steering.pilot._again = lambda _: None  # type: ignore[method-assign]  # the policy plans each step
            rig.play(requests)
            rigs.append(rig)
        short, full = rigs
        assert short.runtime.batches == full.runtime.batches, f"seed {seed}"
        assert short.token_ids == full.token_ids, f"seed {seed}"
        assert short.engine.stats() == full.engine.stats(), f"seed {seed}"


def test_decodes_are_summed_up() -> None:
    table = filled()
    rows = table.rows()
    is_decode = (table.num_known[rows] - table.num_computed[rows] == 1) & ~table.is_preempted[rows]
    has_deadline = ~table.is_rt[rows] & np.isfinite(table.deadline_s[rows])
    num_decodes, num_computed, num_deadlines, rt_rows = decode_sums(table.counts, table.times, table.flags, rows)
    assert num_decodes == np.count_nonzero(is_decode)
    assert num_computed == table.num_computed[rows].sum()
    assert num_deadlines == np.count_nonzero(has_deadline)
    assert rt_rows.tolist() == rows[table.is_rt[rows]].tolist()
