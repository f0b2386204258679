"""The demo's load suits the machine: the same picture on a slow and on a fast one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bench.capacity import (
    CHAT_OUTPUT,
    CHAT_PROMPT,
    DOCUMENT_OUTPUT,
    DOCUMENT_PROMPT,
    Capacity,
    capacity_of,
    measure_at,
    round_down,
    round_up,
    suited,
)
from bench.common.score import RequestRecord, Slos
from bench.common.workload import CHAT_SMALL, PAPER_BE
from bench.demo import SETUP, describe
from bench.live.server import ServerError
from tests.triton.servers import Server

AVX512 = Capacity(prefill_tokens_per_s=1489.0, decode_s=0.0046, batch_decode_s=0.0256)
AVX2 = Capacity(prefill_tokens_per_s=130.0, decode_s=0.028, batch_decode_s=0.1)
MACHINES = [Capacity(rate, step / 4, step) for rate, step in product((20.0, 130.0, 1489.0, 5e4), (2e-3, 0.03, 0.5))]


def test_a_fast_machine_gets_the_usual_prompts_and_objectives() -> None:
    setup = suited(AVX512, SETUP)
    assert (setup.rt_rate, setup.be_backlog, setup.prompt_scale) == (0.79, 233, 1.0)
    assert setup.slos == Slos(1.0, 0.1)


def test_a_slow_machine_gets_fewer_and_shorter_prompts_and_wider_objectives() -> None:
    setup = suited(AVX2, SETUP)
    assert (setup.rt_rate, setup.be_backlog, setup.prompt_scale) == (0.29, 119, 0.13)
    assert setup.slos == Slos(2.0, 0.5)


@pytest.mark.parametrize("capacity", MACHINES, ids=str)
def test_on_any_machine_real_time_fits_and_the_backlog_does_not(capacity: Capacity) -> None:
    setup = suited(capacity, SETUP)
    chat_s = capacity.request_s(CHAT_PROMPT * setup.prompt_scale, CHAT_OUTPUT)
    document_s = capacity.request_s(DOCUMENT_PROMPT * setup.prompt_scale, DOCUMENT_OUTPUT)
    long_prompt_s = 3 * CHAT_PROMPT * setup.prompt_scale / capacity.prefill_tokens_per_s
    assert 0.0 < setup.rt_rate * chat_s <= 1 / 6
    assert setup.be_backlog * document_s > setup.duration_s + setup.drain_s or setup.be_backlog == 4000
    assert setup.slos.ttft_slo_s >= 2.9 * long_prompt_s
    assert setup.slos.tpot_slo_s >= 2.9 * capacity.batch_decode_s


def test_a_shorter_run_needs_a_smaller_backlog() -> None:
    assert suited(AVX512, replace(SETUP, duration_s=10.0)).be_backlog < suited(AVX512, SETUP).be_backlog / 2


def test_the_means_are_those_of_the_drawn_lengths() -> None:
    rng = np.random.default_rng(0)
    means = [values.mean() for lengths in (CHAT_SMALL, PAPER_BE) for values in lengths.draw(rng, 20_000)]
    assert means == pytest.approx([CHAT_PROMPT, CHAT_OUTPUT, DOCUMENT_PROMPT, DOCUMENT_OUTPUT], rel=0.03)


def test_scaled_prompts_are_as_much_shorter_and_their_answers_as_long() -> None:
    usual, short = (replace(SETUP, be_backlog=50, rt_rate=1.0, prompt_scale=scale).mix(0) for scale in (1.0, 0.25))
    for arrivals, scaled in ((usual.rt, short.rt), (usual.be, short.be)):
        assert [max(1, round(a.num_prompt / 4)) for a in arrivals] == [a.num_prompt for a in scaled]
        assert [a.num_output for a in arrivals] == [a.num_output for a in scaled]


@pytest.mark.parametrize(
    ("value", "up", "down"), [(0.96, 1.0, 0.96), (1.0, 1.0, 1.0), (0.0768, 0.1, 0.076), (23.4, 50.0, 23.0)]
)
def test_rounding_goes_one_way(value: float, up: float, down: float) -> None:
    assert (round_up(value), round_down(value)) == (up, down)


def record(num_prompt: int, *times_s: float) -> RequestRecord:
    return RequestRecord("r", True, 1.0, num_prompt, len(times_s), [1.0 + time_s for time_s in times_s])


def test_capacity_is_the_best_try_alone_and_the_median_of_the_batch() -> None:
    prefills = [record(256, 2.0), record(256, 0.5)]
    alone = [record(8, 0.1, 0.9, 1.1), record(8, 0.1, 0.2, 0.3)]
    batch = [record(8, 0.1, 0.4), record(8, 0.1, 0.4), record(8, 0.1, 9.0)]
    found = capacity_of(prefills, alone, batch)
    assert [found.prefill_tokens_per_s, found.decode_s, found.batch_decode_s] == pytest.approx([512.0, 0.1, 0.3])


def test_the_load_is_said_with_what_it_follows_from() -> None:
    said = describe(AVX2, suited(AVX2, SETUP))
    for words in (
        "130 prompt tokens/s",
        "28.0 ms alone",
        "100.0 ms in a batch of 16",
        "0.29 real-time",
        "2 s",
        "500 ms",
    ):
        assert words in said


@pytest.mark.triton
def test_an_idle_server_is_measured_by_its_answers(sim: Server) -> None:
    found = measure_at(f"grpc://{sim.grpc_url}")
    assert found.decode_s > 0.004  # a simulated step sleeps 8 ms; the first token may come late
    assert found.batch_decode_s > 0.004
    assert 0.0 < found.prefill_tokens_per_s <= 256 / 0.008


def test_a_server_that_is_not_there_is_no_capacity() -> None:
    with pytest.raises(ServerError, match=r"measuring grpc://127\.0\.0\.1:1: no answer within 120 s: "):
        measure_at("grpc://127.0.0.1:1")
