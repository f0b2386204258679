"""How soon slots are free when a client leaves: the summary of `bench.cancel`, and its section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe as describe_source
from bench.report.measured import load_json
from bench.report.tables import markdown_table, verdict

NOTICED_BAR_MS = 100.0  # and then one step until the slots are free
INTRODUCTION = """\
`python -m bench.cancel` measures the time from a client's leaving to its KV slots being free. The slots are free at
the end of the last step with that request. {num_cancels} clients leave in each of three situations: alone, beside
{num_streams} real-time and {num_streams} best-effort streams, and beside these while other work wants every core.
Cells show median / 90th percentile / longest, in ms. Up to {step_ms:g} ms of that is the step under way. A stub
asks Triton every {cancel_poll_ms:g} ms which clients have gone (`service.cancel_poll_s`); Triton offers no other
way. The executor is simulated. Clients, server, stubs and engine share the machine's cores."""

MISSED = """\
Why a bar is missed: each poll goes from the stub to the server and back. Under `bros-serve` both run as batch
threads, so that they do not take a core from the engine. With more runnable threads than cores, each direction
waits for a core, and a stub polls its requests one after another."""


def summary(delays_ms: Sequence[float]) -> dict[str, Any]:
    """Return median, 90th percentile, maximum, and all."""
    median, p90, longest = np.quantile(delays_ms, (0.5, 0.9, 1.0))
    return {"median_ms": float(median), "p90_ms": float(p90), "max_ms": float(longest), "delays_ms": list(delays_ms)}


def describe(result: Mapping[str, Any]) -> str:
    """Return the result in words."""
    return "\n".join([*(" | ".join(row) for row in (_HEADER, *_rows(result))), *_bars(result)])


def cancel_sections(results: Path) -> list[str]:
    """Return the section on clients that leave, if there is a result."""
    result = load_json(results / "cancel.json")
    if result is None:
        return []
    bars = "\n".join(_bars(result))
    sections = [
        "## When a client leaves",
        INTRODUCTION.format(**result),
        describe_source(result["provenance"]),
        markdown_table(_HEADER, _rows(result)),
        bars,
    ]
    return [*sections, MISSED] if verdict(is_met=False) in bars else sections


def cancel_bars(results: Path) -> list[str]:
    """Return the bar of each load, the result, and the verdict."""
    result = load_json(results / "cancel.json")
    return [] if result is None else _bars(result)


_LOADS = {"alone": "alone", "beside": "beside streams", "busy": "beside streams, cores busy"}
_HEADER = ("way to leave", *_LOADS.values())


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    loads = [result["loads"][name] for name in _LOADS]
    return [[way, *(_cell(load[way]) for load in loads)] for way in loads[0]]


def _cell(found: Mapping[str, Any]) -> str:
    return " / ".join(f"{found[name]:.0f}" for name in ("median_ms", "p90_ms", "max_ms"))


def _bars(result: Mapping[str, Any]) -> list[str]:
    bar_ms = NOTICED_BAR_MS + result["step_ms"]
    lines = []
    for name, words in _LOADS.items():
        delays_ms = [delay_ms for found in result["loads"][name].values() for delay_ms in found["delays_ms"]]
        num_in_time = sum(delay_ms <= bar_ms for delay_ms in delays_ms)
        share = f"{num_in_time} of {len(delays_ms)} within {NOTICED_BAR_MS:g} ms and one step"
        lines.append(f"- {words}: {share} (bar: all: {verdict(num_in_time == len(delays_ms))})")
    return lines
