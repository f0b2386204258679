"""The feasible region of one pair as a table: the tightest SLOs that each policy keeps at each load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

BEGIN, END = "<!-- region: written by `python -m bench.report` -->", "<!-- /region -->"
INTRODUCTION = """\
Simulated: {pair}, Poisson arrivals, ShareGPT lengths, one seed. An SLO counts as kept if {goal:g} % of the real-time
requests keep both. The TTFT beside a TPOT of {tpot:g} s / the TPOT beside a TTFT of {ttft:g} s, in seconds. A dash: not
even {loosest_ttft:g} s, or {loosest_tpot:g} s."""


def region_result(results: Path) -> dict[str, Any] | None:
    """Return the result of `bros-plan --region`, if there is one."""
    return load_json(results / "region.json")


def region_text(results: Path) -> str | None:
    """Return the table, or None without a result."""
    result = region_result(results)
    if result is None:
        return None
    scenario, points = result["scenario"], result["points"]
    policies = list(dict.fromkeys(point["policy"] for point in points))
    rates = sorted({point["rt_rate"] for point in points})
    found = {(point["policy"], point["rt_rate"]): _cell(point) for point in points}
    rows = [[f"{rate:g}", *(found[policy, rate] for policy in policies)] for rate in rates]
    introduction = INTRODUCTION.format(
        pair=result["pair"],
        goal=100 * result["goal"],
        tpot=scenario["tpot_slo_s"],
        ttft=scenario["ttft_slo_s"],
        loosest_ttft=result["loosest_ttft_slo_s"],
        loosest_tpot=result["loosest_tpot_slo_s"],
    )
    header = ["RT requests/s", *(f"`{policy}`" for policy in policies)]
    return "\n\n".join([introduction, markdown_table(header, rows), describe(result["provenance"])])


def _cell(point: Mapping[str, Any]) -> str:
    return " / ".join("–" if slo_s is None else f"{slo_s:g}" for slo_s in (point["ttft_slo_s"], point["tpot_slo_s"]))
