"""What it brings that a real-time and a best-effort request share a block, by block size: the table of docs/kv.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

BEGIN, END = "<!-- sharing: written by `python -m bench.report` -->", "<!-- /sharing -->"
PAYS = 1.1  # from this ratio on a regime counts as one where sharing pays
INTRODUCTION = """\
`python -m bench.study --sharing`, simulated: best-effort tokens per second with shared blocks divided by those with
blocks of one owner. The brackets hold the shares of real-time requests in time, in percent, with and without. The pool,
the requests and the policy are the same. "short": prompts of 16 to 64 tokens and 8 to 32 of output. "long": ShareGPT
beside prompts of 512 to 1,024 tokens. Seeds: {num_seeds}."""


def sharing_text(results: Path) -> str | None:
    """Return the table and what follows from it, or None without a result."""
    study = load_json(results / "study-sharing.json")
    if study is None:
        return None
    runs = study["runs"]
    sizes = sorted({run["scenario"]["block_size"] for run in runs})
    header = ("pair", "requests", *(f"blocks of {size}" for size in sizes))
    cells = list(dict.fromkeys((run["scenario"]["pair"], run["label"]) for run in runs))
    ratios = {
        (pair, label, size): _Ratio.of([run for run in runs if _cell(run) == (pair, label, size)])
        for pair, label in cells
        for size in sizes
    }
    rows = [[pair, label, *(str(ratios[pair, label, size]) for size in sizes)] for pair, label in cells]
    num_seeds = len({run["scenario"]["seed"] for run in runs})
    introduction = INTRODUCTION.format(num_seeds=num_seeds)
    verdict = _verdict({key: ratio.throughput for key, ratio in ratios.items()})
    return "\n\n".join([introduction, markdown_table(header, rows), verdict, describe(study["provenance"])])


def put_into(document: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return `document` with `text` between the two marks."""
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


class _Ratio:
    """One cell: throughput with sharing over that without, and both attainments."""

    def __init__(self, throughput: float, attained: tuple[float, float]) -> None:
        self.throughput = throughput
        self._attained = attained

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> _Ratio:
        halves = [[run for run in runs if run["scenario"]["settings"]["sharing"] is on] for on in (True, False)]
        rates = [float(np.mean([run["be_tokens_per_s"] for run in half])) for half in halves]
        attained = [100 * float(np.mean([run["rt_attainment"]["both"] for run in half])) for half in halves]
        return cls(rates[0] / rates[1], (attained[0], attained[1]))

    def __str__(self) -> str:
        return f"{self.throughput:.3f} ({self._attained[0]:.1f} / {self._attained[1]:.1f})"


def _cell(run: Mapping[str, Any]) -> tuple[str, str, int]:
    return run["scenario"]["pair"], run["label"], run["scenario"]["block_size"]


def _verdict(ratios: Mapping[tuple[str, str, int], float]) -> str:
    paying = sorted({(label, size) for (_, label, size), ratio in ratios.items() if ratio >= PAYS})
    highest = max(ratios.values())
    if not paying:
        return f"No regime here gains a tenth; the highest ratio is {highest:.3f}."
    words = ", ".join(f"{label} requests in blocks of {size}" for label, size in paying)
    return f"Sharing gains a tenth or more here: {words}. The highest ratio is {highest:.3f}."
