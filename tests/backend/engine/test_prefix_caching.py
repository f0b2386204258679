"""The scheduler lets requests begin where the cache's tokens end, and takes nothing from anyone for it."""

from __future__ import annotations

from functools import partial

from backend.core.request import FinishReason, PrefixSource, PriorityClass, RequestId
from tests.backend.factories import BE, RT, Harness, be, make_request, rt

make_harness = partial(Harness, prefix_caching=True)
PROMPT = list(range(100, 164))  # four blocks


def served(harness: Harness, *prompts: list[int], salts: tuple[str, ...] = (), cls: PriorityClass = BE) -> list[int]:
    """Serve prompts one after the other; return how many tokens of each were there already."""
    found = []
    for index, prompt in enumerate(prompts):
        request = make_request(cls, prompt=prompt, cache_salt=salts[index] if salts else "")
        harness.submit(request)
        harness.run()
        found.append(request.num_cached)
    return found


def test_a_prompt_that_came_before_is_computed_from_its_last_whole_block_on() -> None:
    assert served(make_harness(verify=True), PROMPT, [*PROMPT, 7, 8], PROMPT) == [0, 64, 63]


def test_an_answer_is_part_of_what_the_next_turn_finds() -> None:
    harness = make_harness(verify=True)
    first = make_request(BE, prompt=PROMPT, max_tokens=33)
    harness.submit(first)
    harness.run()
    assert served(harness, [*first.token_ids, 7]) == [96]


def test_nothing_crosses_salts() -> None:
    assert served(make_harness(verify=True), PROMPT, PROMPT, PROMPT, salts=("a", "b", "a")) == [0, 0, 63]


def test_real_time_finds_what_best_effort_computed() -> None:
    harness = make_harness(verify=True)
    served(harness, PROMPT, cls=BE)
    assert served(harness, PROMPT, cls=RT) == [63]


def test_off_nothing_is_found_and_nothing_is_kept() -> None:
    harness = Harness(prefix_caching=False)
    assert served(harness, PROMPT, PROMPT) == [0, 0]
    assert harness.scheduler.stats().kv.num_cached_slots == 0
    assert not harness.scheduler.stats().total_prefix_tokens


def test_a_request_that_runs_lends_its_prompt() -> None:
    harness = make_harness(verify=True)
    first, second = be(prompt=PROMPT, max_tokens=50), rt(prompt=[*PROMPT, 7])
    harness.submit(first)
    harness.step(3)
    harness.submit(second)
    harness.run()
    assert second.num_cached == 64


def test_a_prompt_is_lent_as_far_as_it_is_computed() -> None:
    harness = make_harness(verify=True, max_tokens_per_step=32)
    first, second = be(prompt=PROMPT), rt(prompt=[*PROMPT, 7])
    harness.submit(first)
    harness.step()
    harness.submit(second)
    harness.run()
    assert second.num_cached == 32


def test_what_a_waiting_request_needs_is_evicted_after_what_was_used_later() -> None:
    harness = make_harness(verify=True, num_blocks=64, max_seq_len=1_200, max_seqs_per_step=1, be_min_share=0.0)
    served(harness, PROMPT, list(range(1_000, 1_800)))
    running, waiting = rt(prompt=[7], max_tokens=300, tpot_slo_s=0.001), be(prompt=[*PROMPT, 7])
    harness.submit(running, waiting)
    harness.run()
    assert harness.scheduler.stats().total_evicted_slots > 0
    assert waiting.num_cached == 64


def test_a_cancelled_request_leaves_what_it_computed() -> None:
    harness = make_harness(verify=True)
    first = be(prompt=PROMPT, max_tokens=50)
    harness.submit(first)
    harness.step(3)
    harness.scheduler.cancel(RequestId(first.request_id), harness.clock.now_s())
    assert first.finish_reason is FinishReason.CANCELLED
    assert served(harness, PROMPT) == [63]


def test_a_failed_step_leaves_nothing_to_be_found() -> None:
    harness = make_harness(verify=True)
    harness.fail_at = 1
    assert served(harness, PROMPT, PROMPT) == [0, 0]


def test_tokens_of_prompts_are_counted_by_class_and_source() -> None:
    harness = make_harness()
    served(harness, PROMPT, PROMPT, cls=RT)
    assert harness.scheduler.stats().total_prefix_tokens == {
        (RT, PrefixSource.HIT): 63,
        (RT, PrefixSource.MISS): 65,
    }


def test_a_request_that_fills_the_pool_begins_without_a_prefix_that_is_in_its_way() -> None:
    harness = make_harness(verify=True, num_blocks=4, max_seq_len=200, num_host_slots=0)
    first = rt(prompt=PROMPT[:20], max_tokens=1)
    harness.submit(first)
    harness.run()
    whole = rt(prompt=PROMPT[:17] + list(range(500, 545)), max_tokens=3)  # all 64 slots
    harness.submit(whole)
    harness.run()
    assert harness.reasons[whole.request_id] is FinishReason.LENGTH


def test_real_time_takes_a_prefix_that_only_best_effort_holds() -> None:
    harness = make_harness(verify=True, num_blocks=12, max_seq_len=200, num_host_slots=0)
    served(harness, PROMPT)
    borrowers = [be(prompt=[*PROMPT, index], max_tokens=100) for index in (1, 2)]
    harness.submit(*borrowers)
    harness.step(3)
    urgent = rt(prompt=list(range(1_000, 1_150)), max_tokens=4)
    harness.submit(urgent)
    harness.step(8)
    assert urgent.first_token_s is not None
    harness.run()
    assert harness.num_free_blocks() == 12


def test_real_time_s_cached_turns_outlive_a_flood_of_best_effort() -> None:
    harness = make_harness(verify=True, num_blocks=40, max_seq_len=400)
    served(harness, PROMPT, cls=RT)
    served(harness, *([index, *PROMPT[1:]] for index in range(20)), cls=BE)
    assert harness.scheduler.stats().total_evicted_slots > 0
    assert served(harness, PROMPT, cls=RT) == [63]


make_host_harness = partial(make_harness, verify=True, num_blocks=12, max_seq_len=200, prefix_host_tokens=400)
OTHERS = [list(range(first, first + 150)) for first in (1_000, 2_000)]  # each takes most of the 192 slots


def test_what_real_time_used_is_found_on_the_host_when_the_cache_has_dropped_it() -> None:
    harness = make_host_harness()
    assert served(harness, PROMPT, *OTHERS, [*PROMPT, 7], cls=RT) == [0, 0, 0, 64]
    assert harness.scheduler.stats().total_prefix_tokens[RT, PrefixSource.HOST] == 64
    assert harness.scheduler.stats().total_copied_in_tokens == 64


def test_what_the_host_has_follows_what_the_cache_has() -> None:
    harness = make_host_harness()
    served(harness, PROMPT, cls=RT)
    harness.scheduler.kv.evict_all()
    served(harness, PROMPT[:32], cls=RT)
    assert served(harness, [*PROMPT, 7], cls=RT) == [64]
    assert harness.scheduler.stats().total_prefix_tokens == {
        (RT, PrefixSource.HIT): 32,
        (RT, PrefixSource.HOST): 31 + 32,
        (RT, PrefixSource.MISS): 64 + 1 + 1,
    }


def test_what_only_best_effort_used_does_not_go_to_the_host() -> None:
    harness = make_host_harness()
    served(harness, PROMPT, *OTHERS, cls=BE)
    assert harness.scheduler.stats().kv.num_host_prefix_slots_used == 0


def test_nothing_on_the_host_crosses_salts() -> None:
    harness = make_host_harness()
    salts = ("a", "a", "a", "b", "a")
    assert served(harness, PROMPT, *OTHERS, PROMPT, PROMPT, salts=salts, cls=RT)[3] == 0


def test_a_failed_step_leaves_nothing_on_the_host() -> None:
    harness = make_host_harness()
    served(harness, PROMPT, cls=RT)
    harness.scheduler.kv.evict_all()
    assert harness.scheduler.stats().kv.num_host_prefix_slots_used == 64
    harness.fail_at = harness.scheduler.stats().total_steps + 1
    assert served(harness, OTHERS[0], PROMPT, cls=RT) == [0, 0]


def test_prefixes_stay_within_their_part_of_the_host_pool() -> None:
    harness = make_host_harness(prefix_host_tokens=40)
    served(harness, PROMPT, cls=RT)
    harness.scheduler.kv.evict_all()
    assert harness.scheduler.stats().kv.num_host_prefix_slots_used == 32
    assert served(harness, OTHERS[0], PROMPT, cls=RT) == [0, 32]  # its first two segments
    assert harness.scheduler.kv.config.num_host_slots == harness.executor.capacity().num_host_slots - 40
