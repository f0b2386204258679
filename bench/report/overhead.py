"""What going through Triton costs, compared within each round of `bench.overhead`, and its section of the report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe as describe_source
from bench.report.measured import load_json
from bench.report.tables import markdown_table, verdict

MISSED = """\
Why a bar is missed: an engine that leaves a core free, or only sleeps, loses little. The loss is therefore
processor time, not waiting. An RT token is a response of its own. It passes five threads of stub and server between
engine and socket. Most of the stub's time is Triton's hand-over, and the poll for clients that left. Each time one
of these threads takes a core, the engine's other threads wait. The client's share would be on another machine in
production. Two settings reduce the cost: fewer responses (`service.rt_coalesce_s`) and a free core (`--threads`)."""

Round = Mapping[str, Any]
Spread = Mapping[str, float]

IN_PROCESS, IN_PROCESS_AGAIN = "in_process", "in_process_again"  # before and after the ways through Triton
THROUGH_TRITON, BY_MODEL_NAME = "through_triton", "by_model_name"
DIRECT = (IN_PROCESS, IN_PROCESS_AGAIN)
CLASSES = ("rt", "be")
TTFT_BAR_MS, THROUGHPUT_BAR = 5.0, 0.95
RUNS = {
    "overhead": "torch engine on all cores",
    "overhead-one-core": "torch engine on one of the two cores (`--threads 1`)",
    "overhead-coalesced": "torch engine, real-time tokens together for up to 0.1 s (`service.rt_coalesce_s`)",
    "overhead-sim": "simulated executor, which only sleeps",
}
INTRODUCTION = """\
`python -m bench.overhead` runs the same engine in the client's process and behind the server, over one gRPC stream.
Each round measures the engine in process before and after the request paths through Triton. Their cost is relative
to the mean of both. *in process again* is the second in-process run relative to the first: the noise. Values are
medians over rounds, with quartiles in brackets. Client, server, stubs and engine share the machine's cores."""


def compare(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the medians of every way, and the costs of Triton as spreads of what each round saw."""
    return {
        "num_rounds": len(rounds),
        "ttft_ms": {way: statistics.median(each["ttft_ms"][way] for each in rounds) for way in rounds[0]["ttft_ms"]},
        "added_ttft_ms": {
            THROUGH_TRITON: _spread(rounds, lambda r: _added_ms(r, THROUGH_TRITON)),
            BY_MODEL_NAME: _spread(rounds, lambda r: _added_ms(r, BY_MODEL_NAME)),
            IN_PROCESS_AGAIN: _spread(rounds, lambda r: r["ttft_ms"][IN_PROCESS_AGAIN] - r["ttft_ms"][IN_PROCESS]),
            "by_model_name_against_through_triton": _spread(
                rounds, lambda r: r["ttft_ms"][BY_MODEL_NAME] - r["ttft_ms"][THROUGH_TRITON]
            ),
        },
        **{name: _compare_class(rounds, name) for name in CLASSES},
    }


def _compare_class(rounds: Sequence[Round], name: str) -> dict[str, Any]:
    rates = [each[name]["tokens_per_s"] for each in rounds]
    cpu_us = [each[name]["cpu_us_per_token"] for each in rounds]
    return {
        "tokens_per_s": {way: statistics.median(rate[way] for rate in rates) for way in rates[0]},
        "throughput_ratio": {
            THROUGH_TRITON: _spread(rates, lambda rate: rate[THROUGH_TRITON] / _direct(rate)),
            BY_MODEL_NAME: _spread(rates, lambda rate: rate[BY_MODEL_NAME] / _direct(rate)),
            IN_PROCESS_AGAIN: _spread(rates, lambda rate: rate[IN_PROCESS_AGAIN] / rate[IN_PROCESS]),
            "by_model_name_against_through_triton": _spread(
                rates, lambda rate: rate[BY_MODEL_NAME] / rate[THROUGH_TRITON]
            ),
        },
        "cpu_us_per_token": {
            way: {who: statistics.median(us[way][who] for us in cpu_us) for who in cpu_us[0][way]} for way in cpu_us[0]
        },
    }


def _direct(seen: Mapping[str, float]) -> float:
    return (seen[IN_PROCESS] + seen[IN_PROCESS_AGAIN]) / 2


def _added_ms(each: Round, way: str) -> float:
    return float(each["ttft_ms"][way]) - _direct(each["ttft_ms"])


def _spread(seen: Sequence[Any], read: Callable[[Any], float]) -> Spread:
    low, median, high = np.quantile([read(each) for each in seen], (0.25, 0.5, 0.75))
    return {"median": float(median), "q1": float(low), "q3": float(high)}


def describe(result: Mapping[str, Any]) -> str:
    """Return the result in words."""
    lines = [f"executor {result['executor']}, {result['num_rounds']} rounds"]
    lines += [" | ".join(row) for row in _rows(result)]
    return "\n".join(lines)


def overhead_sections(results: Path) -> list[str]:
    """Return the section on what Triton costs, as far as there are results."""
    documents = {what: load_json(results / f"{name}.json") for name, what in RUNS.items()}
    sections = ["## Through Triton", INTRODUCTION]
    for what, result in documents.items():
        if result is not None:
            load = (
                "{num_rounds} rounds of {num_streams} requests at once, {prompt_tokens} tokens in, {output_tokens} out."
            )
            sections += [f"### {what}", f"{describe_source(result['provenance'])} {load.format(**result)}"]
            sections += [markdown_table(_HEADER, _rows(result)), "\n".join(_bars(result))]
    if any(_MISS in section for section in sections):
        sections.append(MISSED)
    return sections if len(sections) > 2 else []


def overhead_rows(results: Path) -> list[list[str]]:
    """Return a row per way to run the engine: added TTFT, and throughput through Triton by class."""
    rows = []
    for name, what in RUNS.items():
        if (result := load_json(results / f"{name}.json")) is not None:
            ratios = [_percent(result[each]["throughput_ratio"][THROUGH_TRITON]) for each in CLASSES]
            rows.append([what, _ms(result["added_ttft_ms"][THROUGH_TRITON]), *ratios])
    return rows


def overhead_bars(results: Path) -> list[str]:
    """Return the bar of each way to run the engine, the result, and the verdict."""
    documents = ((what, load_json(results / f"{name}.json")) for name, what in RUNS.items())
    return [f"- {what}: {bar[2:]}" for what, result in documents if result is not None for bar in _bars(result)]


_MISS = verdict(is_met=False)
_HEADER = ("what", "in process", "model `bros`", "`bros_rt`, `bros_be`", "these against `bros`", "in process again")


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    ttft_ms, added_ms = result["ttft_ms"], result["added_ttft_ms"]
    rows = [["TTFT alone, ms", f"{ttft_ms[IN_PROCESS]:.1f}", *(_ms(added_ms[way]) for way in _COMPARED)]]
    for name in CLASSES:
        found = result[name]
        ratios = [_percent(found["throughput_ratio"][way]) for way in _COMPARED]
        rows.append([f"{name}: tokens/s", f"{found['tokens_per_s'][IN_PROCESS]:.0f}", *ratios])
        cpu_us = found["cpu_us_per_token"]
        shares = [_shares(cpu_us[way]) for way in (IN_PROCESS, THROUGH_TRITON, BY_MODEL_NAME)]
        rows.append([f"{name}: processor time per token, µs", *shares, "", _shares(cpu_us[IN_PROCESS_AGAIN])])
    return rows


_COMPARED = (THROUGH_TRITON, BY_MODEL_NAME, "by_model_name_against_through_triton", IN_PROCESS_AGAIN)


def _bars(result: Mapping[str, Any]) -> list[str]:
    added_ms = result["added_ttft_ms"][THROUGH_TRITON]["median"]
    lines = [f"- TTFT: {added_ms:+.1f} ms (bar {TTFT_BAR_MS:+g} ms: {verdict(added_ms <= TTFT_BAR_MS)})"]
    for name in CLASSES:
        ratios = [result[name]["throughput_ratio"][way]["median"] for way in (THROUGH_TRITON, BY_MODEL_NAME)]
        seen = " and ".join(f"{100 * ratio:.1f} %" for ratio in ratios)
        is_met = min(ratios) >= THROUGHPUT_BAR
        lines.append(f"- {name}, by input and by name: {seen} (bar {THROUGHPUT_BAR:.0%}: {verdict(is_met)})")
        parts = [100.0 * _engine_part(result[name]["cpu_us_per_token"][way]) for way in (THROUGH_TRITON, BY_MODEL_NAME)]
        lines.append(
            f"- {name}: of the processor time but the client's, the engine has {parts[0]:.1f} % and {parts[1]:.1f} %"
        )
    return lines


def _engine_part(cpu_us: Mapping[str, float]) -> float:
    """Return the engine's part of the processor time of all but the client, which elsewhere is another machine."""
    return cpu_us["engine"] / sum(us for who, us in cpu_us.items() if who != "client")


def _ms(spread: Spread) -> str:
    return f"{spread['median']:+.1f} [{spread['q1']:+.1f}, {spread['q3']:+.1f}]"


def _percent(spread: Spread) -> str:
    return f"{100 * spread['median']:.1f} % [{100 * spread['q1']:.1f}, {100 * spread['q3']:.1f}]"


def _shares(cpu_us: Mapping[str, float]) -> str:
    return ", ".join(f"{who} {us:.0f}" for who, us in cpu_us.items())
