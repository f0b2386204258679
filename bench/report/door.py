"""The front door's cost, and real-time beside a batch: the tables of docs/openai.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table, verdict

BEGIN, END = "<!-- door: written by `python -m bench.report` -->", "<!-- /door -->"
TTFT_BAR_MS, THROUGHPUT_BAR = 3.0, 0.93
_COST = """\
`python -m bench.door`: {num_streams} streams of {output_tokens} tokens through the front door and by gRPC, interleaved.
Medians of {num_rounds} rounds; the executor is simulated. Client, front door, Triton and engine shared the machine's
cores."""
_BESIDE = """\
`python -m bench.beside_batch --executor torch`: chat at {rate:g} requests a second with `service_tier: "priority"`,
alone and beside a batch of {lines:g} lines. Objectives: {ttft_slo_ms:g} ms to the first token,
{tpot_slo_ms:g} ms for each further one."""


def door_text(results: Path) -> str | None:
    """Return both tables, or None without results."""
    cost, beside = load_json(results / "door.json"), load_json(results / "beside-batch.json")
    sections = [_cost(cost)] if cost is not None else []
    sections += [_beside(beside)] if beside is not None else []
    return "\n\n".join(sections) or None


def _cost(result: Mapping[str, Any]) -> str:
    ttft_ms, tokens, ratios = result["ttft_ms"], result["tokens_per_s"], result["throughput_ratio"]
    rows = [
        ["gRPC", f"{ttft_ms['grpc']:.1f} ms", *(f"{tokens[name]['grpc']:.0f}" for name in ("rt", "be"))],
        ["front door", f"{ttft_ms['door']:.1f} ms", *(f"{tokens[name]['door']:.0f}" for name in ("rt", "be"))],
    ]
    least = min(ratios.values())
    added_ms = result["added_ttft_ms"]
    bars = (
        f"- {added_ms:.1f} ms more to the first token (bar: {TTFT_BAR_MS:g} ms: {verdict(added_ms <= TTFT_BAR_MS)})\n"
        f"- {least:.1%} of the tokens per second (bar: {THROUGHPUT_BAR:.0%}: {verdict(least >= THROUGHPUT_BAR)})"
    )
    table = markdown_table(("way", "TTFT", "RT tokens/s", "BE tokens/s"), rows)
    return "\n\n".join([_COST.format(**result), table, bars, describe(result["provenance"])])


def _beside(result: Mapping[str, Any]) -> str:
    header = ("real-time", "requests", "in their SLO", "TTFT p50", "TTFT p99", "TPOT p99")
    rows = [_row(name, result[name]) for name in ("alone", "beside")]
    batch = result["batch"]
    words = f"The batch: {batch['num_completed']} lines completed, {batch['num_failed']} failed, "
    words += f"{batch['lines_per_s']:.1f} a second."
    table = markdown_table(header, rows)
    settings = {name: float(result["settings"][name]) for name in ("rate", "lines", "ttft_slo_ms", "tpot_slo_ms")}
    return "\n\n".join([_BESIDE.format(**settings), table, words, describe(result["provenance"])])


def _row(name: str, seen: Mapping[str, Any]) -> list[str]:
    ttft_ms, tpot_ms = seen["ttft_ms"], seen["tpot_ms"]
    label = "beside the batch" if name == "beside" else name
    return [
        label,
        str(seen["num_requests"]),
        f"{seen['attainment']:.1%}",
        *(f"{milliseconds:.0f} ms" for milliseconds in (ttft_ms["p50"], ttft_ms["p99"], tpot_ms["p99"])),
    ]
