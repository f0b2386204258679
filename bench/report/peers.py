"""Our torch engine beside llama.cpp, and with each kernel taken out: tables of `bench.peers` and `ablate_kernels`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

PROCESSORS = {"avx512-bf16": ("AVX-512 BF16", ""), "avx2": ("AVX2 only", " --isa avx2")}
PEERS = """\
One step of SmolLM2-135M from the same GGUF file on the same threads, contexts of 256 tokens. Times are medians in
milliseconds; the engines run interleaved.

- *ratio*: the median of our time / llama.cpp's time in the same round; below 1 ours is faster.
- *floor* of a decode: bytes of weights, K and V / measured read bandwidth.
- *floor* of a prefill: the layers' products at the speed of one large square product.

Why steps are above the floor:

- At one row, only AVX-512's table look-up unpacks codes faster than memory delivers them.
- From about four rows on, a step is bound by computation. The layers' threads synchronise 270 times a step.
- In prefills the excess is attention, which grows with the context, and norms and rotations.

llama.cpp multiplies Q4_1 by 8-bit integer dot products at every number of rows. It has no matrix kernel for that
format."""
KERNELS = """\
A step of the whole engine in milliseconds, and the factor by which it takes longer with one part replaced:

- *no program*: each kernel of a layer is called from Python.
- *dense products*: no 4-bit or 8-bit weights.
- *torch layer ops*: torch computes norm, rotation and activation.
- *torch attention*: the same, and torch's attention.
- *one thread*: our kernels run on one thread.
- *no tiles*: long chunks are copied together for torch's attention."""


def peer_sections(results: Path) -> list[str]:
    """Return the sections; none without results."""
    peers = {name: load_json(results / f"llama-cpp-{name}.json") for name in PROCESSORS}
    sections = []
    if any(peers.values()):
        sections += ["## Beside llama.cpp", PEERS]
    for name, document in peers.items():
        if document is not None:
            command = f"python -m bench.peers{PROCESSORS[name][1]} --out bench/results/llama-cpp-{name}.json"
            sections += [f"### On {PROCESSORS[name][0]}", f"`{command}`", _provenance(document), _peer_table(document)]
    kernels = {name: load_json(results / f"kernels-{name}.json") for name in PROCESSORS}
    if any(kernels.values()):
        sections += ["## The torch engine without each kernel", KERNELS]
    for name, document in kernels.items():
        if document is not None:
            command = f"python -m bench.ablate_kernels{PROCESSORS[name][1]} --out bench/results/kernels-{name}.json"
            about = f"{document['config']['engine']}. {describe(document['provenance'])}"
            sections += [f"### Kernels on {PROCESSORS[name][0]}", f"`{command}`", about, _kernel_table(document)]
    return sections


def _provenance(document: Mapping[str, Any]) -> str:
    return " ".join([*(f"{engine}." for engine in document["engines"].values()), describe(document["provenance"])])


def _peer_table(document: Mapping[str, Any]) -> str:
    rows = [
        [
            row["case"],
            f"{row['bros_s'] * 1e3:.1f}",
            f"{row['llama.cpp_s'] * 1e3:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['floor_s'] * 1e3:.1f}",
            f"{row['bros_s'] / row['floor_s']:.1f}",
        ]
        for row in document["rows"]
    ]
    return markdown_table(["case", "bros", "llama.cpp", "ratio", "floor", "bros / floor"], rows)


def _kernel_table(document: Mapping[str, Any]) -> str:
    names = [name for name in document["rows"][0] if name not in ("case", "step_s")]
    rows = [
        [row["case"], f"{row['step_s'] * 1e3:.1f}", *(f"{row[name]:.2f}" for name in names)] for row in document["rows"]
    ]
    return markdown_table(["case", "whole, ms", *names], rows)
