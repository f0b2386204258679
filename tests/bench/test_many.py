"""The measurement of many replicas: engines, load and report. tests/backend/dynamo tests the measured workers."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from backend.config import parse_config
from bench.common.score import RequestRecord
from bench.live.counting import Answer, CountingTarget, Usage
from bench.live.load import Query
from bench.live.shared_prompts import Sizes
from bench.many import SLOS, WAYS, capacities, engine_json, make_mix, pauses_s
from bench.many_prefixes import engine_with_prefixes, score
from bench.many_prefixes import main as prefixes_main
from bench.report.many import many_text


def test_the_limit_has_the_capacity_of_all_engines() -> None:
    for has_faults, total in ((True, 3.5), (False, 4.0)):
        of_kind = [way for way in WAYS if way.has_faults == has_faults]
        assert {sum(capacities(way)) for way in of_kind} == {total}
        assert [len(capacities(way)) for way in of_kind if way.is_limit] == [1]


@pytest.mark.parametrize("capacity", [0.5, 1.0, 3.5])
def test_an_engine_of_a_capacity_takes_as_much_more_or_longer(capacity: float) -> None:
    usual, other = parse_config(engine_json(1.0)).sim, parse_config(engine_json(capacity)).sim
    per_token = usual.coefficients[1] / other.coefficients[1]
    assert per_token == pytest.approx(capacity)
    assert other.max_seqs_per_step * other.coefficients[1] == pytest.approx(
        usual.max_seqs_per_step * usual.coefficients[1] * max(1.0, 1 / capacity)
    )


def test_the_load_depends_on_the_seed_only() -> None:
    arguments = Namespace(rt_rate=4.0, be_rate=20.0, duration_s=20.0)
    first, again, other = (make_mix(arguments, seed) for seed in (0, 0, 1))
    assert (first.rt, first.be) == (again.rt, again.be)
    assert first.rt != other.rt
    times_s = [arrival.arrival_s for arrival in first.be]
    assert times_s == sorted(times_s)
    early = sum(time_s < 4.0 for time_s in times_s)
    assert early > 1.5 * 4.0 * arguments.be_rate


def test_pauses_are_those_of_real_time_streams_under_way_at_the_kill() -> None:
    def record(is_rt: bool, *times_s: float) -> RequestRecord:
        return RequestRecord("a", is_rt, 0.0, 1, 1, token_times_s=list(times_s))

    records = [record(True, 1.0, 1.9, 2.5, 2.6), record(True, 1.0, 1.5), record(True, 3.0), record(False, 1.0, 9.0)]
    assert pauses_s(records, 2.0) == [pytest.approx(0.6)]


def run(name: str, tokens: float, attained: float, **fields: Any) -> dict[str, Any]:
    values = {"name": name, "has_faults": True, "is_limit": False, "seed": 0, "be_tokens_per_s": tokens}
    values |= {"rt_attainment": {"both": attained}, "death": None}
    return values | dict.fromkeys(("num_lost", "num_missing", "num_double", "num_foreign"), 0) | fields


def document_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    facts = {"commit": "c", "has_local_changes": False, "date": "d", "versions": {}}
    facts |= {"hardware": {"num_cores": 2, "cpu": "p"}}
    document = {
        "provenance": facts,
        "replicas": 4,
        "slowness": 2.0,
        "duration_s": 60.0,
        "rt_rate": 6.0,
        "be_rate": 25.0,
    }
    return document | {"slos": {"ttft_slo_s": 1.0, "tpot_slo_s": 0.2}, "runs": runs}


@pytest.mark.parametrize(
    ("best", "num_lost", "is_near", "is_whole"),
    [(950.0, 0, True, True), (850.0, 0, False, True), (950.0, 2, True, False)],
)
def test_the_report_judges_loss_and_nearness(
    tmp_path: Path, best: float, num_lost: int, is_near: bool, is_whole: bool
) -> None:
    death = {"killed_s": 5.0, "away_s": 7.25, "pauses_s": [0.1, 0.4]}
    runs = [run("queues", best, 0.99, death=death, num_lost=num_lost), run("plain", 999.0, 0.5)]
    runs.append(run("one", 1000.0, 0.99, is_limit=True))
    document = document_of(runs)
    (tmp_path / "many.json").write_text(json.dumps(document))
    text = many_text(tmp_path)
    assert text is not None
    assert "prefix" not in text
    assert f"| queues | 99.0% | {best:.0f} | {best / 1000:.0%} | {num_lost} | 0 | 0 | 7.2 s |" in text
    assert "2 real-time streams at a kill: 0.40 s" in text
    lines = {line.split(":")[0].split(",")[0]: line for line in text.splitlines() if line.startswith("- ")}
    assert ("(bar: 0: met)" in lines["- Lost streams and wrong tokens"]) is is_whole
    assert ("at equal attainment: met)" in lines["- Best router"]) is is_near


def test_nothing_is_said_without_a_result(tmp_path: Path) -> None:
    assert many_text(tmp_path) is None


def test_the_report_says_what_routing_by_prefix_brings(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    runs = [
        {"name": name, "seed": seed, "hits": {"both": hits, "rt": 0.25, "be": None}, "be_tokens_per_s": 100.0}
        | {"rt_attainment": {"both": 1.0}, "num_lost": seed, "num_missing": 0, "num_double": 0, "num_foreign": 0}
        for name, hits in (("plain", 0.5), ("events", 0.9))
        for seed in (0, 1)
    ]
    whole = document_of([run("one", 1.0, 1.0)])
    part = {
        "provenance": whole["provenance"],
        "replicas": 4,
        "kv_tokens": 16384,
        "duration_s": 35.0,
        "sizes": asdict(Sizes()),
    }
    path.write_text(json.dumps(whole | {"prefixes": part | {"runs": runs}}))
    text = many_text(tmp_path)
    assert text is not None
    assert "| events | 90.0% | 25.0% | - | 100.0% | 100 | 1 | 0 | 0 |" in text
    assert "Means over 2 seeds." in text


def test_engines_with_prefix_caches_are_smaller_and_have_them() -> None:
    config, usual = parse_config(engine_with_prefixes()), parse_config(engine_json(1.0))
    assert config.scheduler.prefix_caching
    assert config.sim.num_blocks < usual.sim.num_blocks
    assert config.sim.coefficients == usual.sim.coefficients


def test_hits_are_of_requests_answered_after_the_warm_up() -> None:
    target = object.__new__(CountingTarget)
    target.answers = {}
    records = []
    for name, arrival_s, num_cached in (("early", 1.0, 0), ("between", 9.95, 60), ("late", 11.0, 40)):
        query = Query(name, True, [40], 1, SLOS)
        target.answers[name] = Answer(query, usage=Usage(100, num_cached))
        records.append(RequestRecord(name, True, arrival_s, 1, 1, [arrival_s + 0.1], arrival_s + 0.1))
    run = score(records, target, 30.0)
    assert run["hits"] == {"both": 0.5, "rt": 0.5, "be": None}
    assert (run["num_rt"], run["num_lost"]) == (1, 0)


def test_the_result_stands_beside_what_the_file_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.json"
    path.write_text('{"runs": [1]}')
    result = {"hits": {"both": 0.5}, "rt_attainment": {"both": 1.0}, "num_rt": 1, "be_tokens_per_s": 1.0, "errors": []}
    result |= dict.fromkeys(("num_requests", "num_lost", "num_missing", "num_double", "num_foreign"), 0)
    monkeypatch.setattr("bench.many_prefixes.run_way", lambda way, _load: result | {"name": way.name})
    monkeypatch.setattr("sys.argv", ["bench.many_prefixes", "--out", str(path)])
    assert prefixes_main() == 0
    document = json.loads(path.read_text())
    assert document["runs"] == [1]
    assert [each["name"] for each in document["prefixes"]["runs"]][-1] == "KV-aware, events and predicted"
    monkeypatch.setattr("bench.many_prefixes.run_way", lambda way, _load: result | {"name": way.name, "num_lost": 1})
    assert prefixes_main() == 1
