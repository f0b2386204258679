"""The torch engine's step times as tables, from `bench/results/engine-*.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

RUNS = {"bf16": "bf16, 4-bit and 8-bit weights for few rows", "dense": "bf16, dense weights", "float32": "float32"}
# Upper bounds of a step in bf16, seconds, and of its share or multiple of parts.
STEP_BARS_S = {"decode 1": 0.009, "decode 8": 0.028, "decode 16": 0.042, "decode 32": 0.060}
PREFILL_BARS = {512: 1350, 2048: 1050}  # tokens/s, at least
MAX_MEMORY_GB = 1.5  # at the peak, beside the KV pool
STEP_PARTS = ("products", "attention", "other_kernels", "sampling")  # what `step_profile` tells apart
INTRODUCTION = """\
One step of SmolLM2-135M, contexts of 256 tokens, in milliseconds.

- *step*: the median of whole steps.
- *products* to *rest*: the median step timed from inside; the parts sum up to it. The timer itself adds some tenths
  of a millisecond. *products* includes the head. *other kernels* are norm, rotation and activation. *rest* is Python,
  packing and small copies.
- *products floor*: the same products alone, with cold caches.
- *attention floor*: bytes of the attention / read bandwidth.
- *library*: the step through the library's layers."""


def engine_sections(results: Path) -> list[str]:
    """Return the sections about the engine alone; none without results."""
    documents = {name: load_json(results / f"engine-{name}.json") for name in RUNS}
    found = {name: document for name, document in documents.items() if document is not None}
    if not found:
        return []
    sections = ["## The torch engine alone", INTRODUCTION]
    for name, document in found.items():
        config = document["config"]
        arguments = f"--dtype {config['dtype']} --weights {config['weights']} --out bench/results/engine-{name}.json"
        sections += [
            f"### {RUNS[name]}",
            f"`python -m bench.engine {arguments}`",
            describe(document["provenance"]),
            _step_table(document),
            _summary(document),
        ]
        if name == "bf16":
            sections.append("\n".join(bars(document)))
    return sections


def _step_table(document: Mapping[str, Any]) -> str:
    library = {case["name"]: case["step_s"] for case in document.get("library", [])}
    parts = (*STEP_PARTS, "rest", "products_floor", "attention_floor")
    header = ["case", "step", *(part.replace("_", " ") for part in parts), "step / products floor", "library"]
    rows = []
    for case in document["cases"]:
        values = [f"{case[f'{part}_s'] * 1e3:.2f}" for part in ("step", *parts)]
        ratio = f"{case['step_s'] / case['products_floor_s']:.2f}"
        theirs = f"{library[case['name']] * 1e3:.2f}" if case["name"] in library else "–"
        rows.append([case["name"], *values, ratio, theirs])
    return markdown_table(header, rows)


def _summary(document: Mapping[str, Any]) -> str:
    prefills = ", ".join(f"{p['tokens_per_s']:,.0f} tokens/s for {p['length']}" for p in document["prefills"])
    repeats, bandwidth = document["config"]["repeats"], document["read_bandwidth_gb_per_s"]
    return (
        f"Prefill: {prefills}. Loaded in {document['load_s']:.1f} s; peak memory {_memory_gb(document):.2f} GB and the "
        f"KV pool; at most {repeats} repeats; memory reads {bandwidth:.0f} GB/s."
    )


def _memory_gb(document: Mapping[str, Any]) -> float:
    """Return the peak memory beside the KV pool."""
    return float(document["peak_memory_bytes"] - document["kv_pool_bytes"]) / 1e9


def bars(document: Mapping[str, Any]) -> list[str]:
    """Return each bar of the engine in bf16, with the measured value and the verdict."""
    cases = {case["name"]: case for case in document["cases"]}
    at_16, mixed = cases["decode 16"], cases["16 decodes + chunk 128"]
    speeds = {p["length"]: p["tokens_per_s"] for p in document["prefills"]}
    shares = {part: 100 * at_16[f"{part}_s"] / at_16["profiled_step_s"] for part in ("attention", "rest")}
    lines = [
        _bar(f"{name}, ms", cases[name]["step_s"] * 1e3, bar_s * 1e3, at_most=True)
        for name, bar_s in STEP_BARS_S.items()
    ]
    lines += [
        _bar(f"prefill of {length}, tokens/s", speeds[length], bar, at_most=False)
        for length, bar in PREFILL_BARS.items()
    ]
    return [
        *lines,
        _bar(
            "mixed step over the floor of its products", mixed["step_s"] / mixed["products_floor_s"], 1.25, at_most=True
        ),
        _bar("attention's percentage of decode 16", shares["attention"], 25, at_most=True),
        _bar("Python's and bookkeeping's percentage of decode 16", shares["rest"], 10, at_most=True),
        _bar("peak memory beside the KV pool, GB", _memory_gb(document), MAX_MEMORY_GB, at_most=True),
    ]


def _bar(name: str, value: float, bar: float, *, at_most: bool) -> str:
    is_met = value <= bar if at_most else value >= bar
    return f"- {name}: {value:,.4g} (bar {'≤' if at_most else '≥'} {bar:,g}: {'met' if is_met else 'not met'})"
