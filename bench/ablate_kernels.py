"""Measures the gain of each hand-written kernel of the torch engine: interleaved steps with and without it, medians.

    python -m bench.ablate_kernels --out bench/results/kernels-avx512-bf16.json
    python -m bench.ablate_kernels --isa avx2 --out bench/results/kernels-avx2.json      # AVX2 only

A variant is the same model over the same weights and pool, with one part replaced by torch's.

    factor = time of the variant's step / time of the whole engine's step in the same round

A kernel stays if its factor is 1.25 or more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from backend.core.numbers import whole
from bench.common.command import as_command
from bench.common.provenance import describe, provenance
from bench.peers import HELD_DOWN, ROOT

CASES = {
    "decode 1": ([256], [1]),
    "decode 4": ([256] * 4, [1] * 4),
    "decode 8": ([256] * 8, [1] * 8),
    "decode 16": ([256] * 16, [1] * 16),
    "decode 32": ([256] * 32, [1] * 32),
    "16 decodes + chunk 128": ([256] * 16 + [0], [1] * 16 + [128]),
    "16 decodes + chunk 496": ([256] * 16 + [0], [1] * 16 + [496]),
    "prefill 512": ([0], [512]),
}


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablate_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", choices=["native", "avx2"], default="native", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=whole(), default=9, help="turns of each variant (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    arguments = parser.parse_args()
    if arguments.isa == "avx2" and os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2":  # read when torch is loaded
        command = [sys.executable, "-m", "bench.ablate_kernels", *sys.argv[1:]]
        return subprocess.run(command, cwd=ROOT, env=os.environ | HELD_DOWN, check=False).returncode
    document = measure(arguments.isa, arguments.rounds)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    return 0


def measure(isa: str, rounds: int) -> dict[str, Any]:
    """Time every case with every variant, interleaved, after one round to warm up."""
    from bench.steps.peer_engines import BrosEngine

    engine = BrosEngine(len(os.sched_getaffinity(0)))
    models = variants(engine)
    seconds: dict[str, dict[str, list[float]]] = {case: {name: [] for name in models} for case in CASES}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
        for case, (starts, num_new) in CASES.items():
            for name, model in models.items():
                engine.executor.model = model
                duration_s = engine.step(starts, num_new)
                if turn:
                    seconds[case][name].append(duration_s)
    rows = [
        {
            "case": case,
            "step_s": statistics.median(times["whole"]),
            **{
                name: statistics.median(a / b for a, b in zip(times[name], times["whole"], strict=True))
                for name in times
                if name != "whole"
            },
        }
        for case, times in seconds.items()
    ]
    config = {"isa": isa, "rounds": rounds, "engine": engine.description}
    return {"provenance": provenance(), "config": config, "rows": rows}


def variants(engine: Any) -> dict[str, Any]:
    """Return the engine's model, whole and with one part replaced by torch's."""
    import torch

    from backend.executors.torch_engine import compiled_ops
    from backend.executors.torch_engine.attention import TorchAttention
    from backend.executors.torch_engine.compiled_ops import CompiledAttention, CompiledLayerOps
    from backend.executors.torch_engine.layer_ops import TorchLayerOps
    from backend.executors.torch_engine.layer_program import layer_program
    from backend.executors.torch_engine.linear import Linear
    from backend.executors.torch_engine.llama import LlamaModel
    from backend.executors.torch_engine.processor import detect

    whole, pool, capacity = engine.executor.model, engine.executor.pool, engine.executor.capacity()
    weights, ops, processor = whole.weights, whole.ops, detect()

    def dense(linear: Linear) -> Linear:
        return Linear(linear.ranges[-1:])

    dense_layers = [
        dataclasses.replace(
            layer,
            qkv=dense(layer.qkv),
            output=dense(layer.output),
            gate_up=dense(layer.gate_up),
            down=dense(layer.down),
        )
        for layer in weights.layers
    ]
    dense_weights = dataclasses.replace(weights, layers=dense_layers, head=dense(weights.head))
    torch_attention = TorchAttention(pool, None if processor.has_bf16_products else torch.float32)
    models = {
        "whole": whole,
        "no program": LlamaModel(weights, ops),
        "dense products": LlamaModel(dense_weights, ops),
        "torch layer ops": LlamaModel(weights, TorchLayerOps(ops.config, pool, ops.attention)),
        "torch attention": LlamaModel(weights, TorchLayerOps(ops.config, pool, torch_attention)),
        "one thread": on_one_thread().executor.model,
    }
    if isinstance(ops.attention._chunks, compiled_ops.TiledAttention):
        gathers = dataclasses.replace(processor, has_avx512_bf16=True, has_amx=True)  # as with matrix units
        attention = CompiledAttention(
            pool, ops.config.num_heads, capacity.max_tokens_per_step, capacity.max_seq_len, gathers
        )
        gathering = CompiledLayerOps(ops.config, pool, attention, capacity.max_tokens_per_step)
        models["no tiles"] = LlamaModel(weights, gathering, layer_program(weights, gathering))
    return models


def on_one_thread() -> Any:
    """Return another engine, all of whose own kernels run in the caller; torch keeps its threads."""
    from backend.executors.torch_engine import compiled_ops, compiled_product
    from bench.steps.peer_engines import BrosEngine

    with mock.patch.object(compiled_ops, "MAX_THREADS", 1), mock.patch.object(compiled_product, "MAX_THREADS", 1):
        return BrosEngine(len(os.sched_getaffinity(0)))


def table(document: Mapping[str, Any]) -> str:
    """Return the rows as text: milliseconds of a whole step, then each variant's time over it."""
    names = [name for name in document["rows"][0] if name not in ("case", "step_s")]
    lines = [f"{'':24}{'whole, ms':>11}" + "".join(f"{name:>17}" for name in names)]
    lines += [
        f"{row['case']:24}{row['step_s'] * 1e3:11.1f}" + "".join(f"{row[name]:17.2f}" for name in names)
        for row in document["rows"]
    ]
    return "\n".join([*lines, document["config"]["engine"], describe(document["provenance"])])


if __name__ == "__main__":
    sys.exit(main())
