"""Fit step_models.json anew from kernel timings that NVIDIA publishes.

    python -m venv fit && fit/bin/pip install aiconfigurator-core==0.12.0
    fit/bin/python -m tools.fit_step_models --out bench/sim/step_models.json

aiconfigurator-core (Apache-2.0) ships timings of TensorRT-LLM's kernels on real GPUs and adds them up for one engine
step. It needs numpy 2, and so an environment of its own.

The package times random steps. The fit uses 70 % of them and holds the others out. It fits the roofline of
`bench.sim.step_models` by non-negative least squares on relative errors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.optimize import nnls

from backend.core.numbers import whole
from bench.common.command import CommandError, as_command
from bench.sim.step_models import Coefficients, StepWork, token_basis

PACKAGE = "aiconfigurator-core"
PACKAGE_VERSION = "0.12.0"
NUM_STEPS = 3000
HELD_OUT = 0.3
_KNEES = (24, 37, 48, 62, 71, 96, 128, 162, 184, 224, 256, 306, 326, 384)
_SMOOTHS = (0.05, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Source:
    """A pair to time. `model` is a name that the package knows, or the fields of a llama-shaped configuration.

    The OPT shapes are stand-ins: OPT's two feed-forward matrices of width 4h become three of 8h/3, as many FLOPs.
    """

    description: str
    model: str | dict[str, int]
    system: str
    version: str
    num_gpus: int
    kv_tokens: int
    kv_bytes_per_token: int


_LLAMA_8B, _LLAMA_70B = "meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-70B"
_A100, _H100 = ("a100_sxm", "1.0.0"), ("h100_sxm", "1.3.0rc20")
_OPT_13B = {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40}
_OPT_30B = {"hidden_size": 7168, "intermediate_size": 19_200, "num_hidden_layers": 48, "num_attention_heads": 56}
# KV capacities are estimates: 0.9 of the GPUs' memory less the weights.
SOURCES = {
    "opt13b-a100-tp2": Source(
        "OPT-13B shape (stand-in, multi-head KV), 2x A100-40GB", _OPT_13B, *_A100, 2, 49_000, 819_200
    ),
    "opt30b-a100-tp4": Source(
        "OPT-30B shape (stand-in, multi-head KV), 4x A100-40GB", _OPT_30B, *_A100, 4, 58_000, 1_376_256
    ),
    "llama8b-a100": Source("Llama-3.1-8B bf16, A100-80GB", _LLAMA_8B, *_A100, 1, 400_000, 131_072),
    "llama8b-h100": Source("Llama-3.1-8B bf16, H100-80GB", _LLAMA_8B, *_H100, 1, 400_000, 131_072),
    "llama70b-h100-tp4": Source("Llama-3.1-70B bf16, 4x H100-80GB", _LLAMA_70B, *_H100, 4, 440_000, 327_680),
    "llama70b-a100-tp8": Source("Llama-3.1-70B bf16, 8x A100-80GB", _LLAMA_70B, *_A100, 8, 1_300_000, 327_680),
}


@as_command
def main() -> None:
    """Fit every pair and write the document."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fit_step_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the drawn steps (default: %(default)s)")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "source": f"Fitted by tools.fit_step_models to kernel timings of TensorRT-LLM in the PyPI package {PACKAGE} "
        f"{PACKAGE_VERSION} (NVIDIA): {NUM_STEPS} random engine steps a pair, {HELD_OUT:.0%} held out.",
        "licence": "Apache-2.0",
        "notes": [
            "No pair is checked against a running engine here. A fit of the same form and source, replayed against "
            "measured TensorRT-LLM time per output token, was off by 2.2 % (Llama-3.1-8B bf16, one H100, 42 points).",
            "kv_tokens are estimates at 0.9 of memory; host copies run at about 24 GB/s per GPU.",
        ],
        "host_overhead_ms": 0.3,
        "host_copy_bytes_per_s_per_gpu": 24e9,
        "pairs": {},
    }
    for name, source in SOURCES.items():
        document["pairs"][name] = fit_pair(source, np.random.default_rng(arguments.seed))
        print(name, document["pairs"][name]["heldout_error"])
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def fit_pair(source: Source, rng: Generator) -> dict[str, Any]:
    """Time random steps of `source`, fit the roofline, and return its entry of the document."""
    works = [random_step(rng) for _ in range(NUM_STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        times_ms = _time_steps(source, works, Path(folder))
    num_fitted = int(NUM_STEPS * (1 - HELD_OUT))
    coefficients = fit(works[:num_fitted], times_ms[:num_fitted])
    errors = np.abs(predict(coefficients, works[num_fitted:]) / times_ms[num_fitted:] - 1.0) * 100
    return {
        "description": source.description,
        "kv_tokens": source.kv_tokens,
        "kv_bytes_per_token": source.kv_bytes_per_token,
        "num_gpus": source.num_gpus,
        "coefficients": {name: getattr(coefficients, name) for name in Coefficients.__slots__},
        "heldout_error": {
            "mean_pct": round(float(errors.mean()), 2),
            "p95_pct": round(float(np.percentile(errors, 95)), 2),
            "max_pct": round(float(errors.max()), 1),
        },
    }


def random_step(rng: Generator) -> StepWork:
    """Draw a step: decodes alone, equal prefill chunks alone, or both together."""
    kind = rng.choice(["decode", "prefill", "mixed"], p=[0.35, 0.15, 0.5])
    num_decodes = 0 if kind == "prefill" else int(np.rint(np.exp(rng.uniform(0, np.log(256)))))
    context = int(rng.uniform(32, 3000))
    num_chunks = 0 if kind == "decode" else int(rng.integers(1, 5))
    chunk = int(np.rint(np.exp(rng.uniform(np.log(16), np.log(2048)))))
    cached = int(rng.choice([0, rng.uniform(0, 3000)]))
    return StepWork(
        num_new_tokens=num_decodes + num_chunks * chunk,
        num_decodes=num_decodes,
        decode_context=num_decodes * context,
        num_prefills=num_chunks,
        prefill_pairs=num_chunks * chunk * (cached + chunk / 2),
    )


def fit(works: list[StepWork], times_ms: NDArray[np.float64]) -> Coefficients:
    """Search the knee and its width over a grid. Fit the other coefficients by non-negative least squares."""
    best: tuple[float, Coefficients] | None = None
    for knee in _KNEES:
        for smooth in _SMOOTHS:
            features = _features(works, knee, smooth)
            solution, residual = nnls(features / times_ms[:, None], np.ones(len(works)))
            if best is None or residual < best[0]:
                best = residual, Coefficients(*map(float, (*solution, knee, smooth)))
    assert best is not None
    return best[1]


def predict(coefficients: Coefficients, works: list[StepWork]) -> NDArray[np.float64]:
    """Return the fitted step times in ms."""
    c = coefficients
    linear = [getattr(c, name) for name in Coefficients.__slots__[:-2]]
    times_ms: NDArray[np.float64] = _features(works, c.knee_tokens, c.smooth) @ np.asarray(linear)
    return times_ms


def _features(works: list[StepWork], knee: float, smooth: float) -> NDArray[np.float64]:
    rows = [
        (
            1.0,
            *token_basis(w.num_new_tokens, knee, smooth),
            w.decode_context,
            w.prefill_pairs,
            w.num_decodes,
            float(w.num_prefills > 0),
        )
        for w in works
    ]
    return np.asarray(rows, np.float64)


def _time_steps(source: Source, works: list[StepWork], folder: Path) -> NDArray[np.float64]:
    """Ask aiconfigurator-core for the time of each step, in ms."""
    try:
        from aiconfigurator_core.sdk import engine, rust_engine_step  # type: ignore[import-not-found]  # see above
    except ModuleNotFoundError as error:
        raise CommandError(f"{error}: install {PACKAGE}=={PACKAGE_VERSION} into an environment of its own") from error

    model = rust_engine_step.RustForwardPassPerfModel.from_native(
        {
            "schema_version": engine.ENGINE_CONFIG_SCHEMA_VERSION,
            "model_name": source.model if isinstance(source.model, str) else _write_config(source.model, folder),
            "system_name": source.system,
            "backend": "trtllm",
            "backend_version": source.version,
            "tp_size": source.num_gpus,
            "pp_size": 1,
            "weight_dtype": "bfloat16",
            "activation_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16",
            "extra": {},
        }
    )
    return np.asarray([model.estimate_forward_pass_time_ms(_metrics(work)) for work in works], np.float64)


def _metrics(work: StepWork) -> dict[str, Any]:
    """Return a step in the package's terms. Chunks are equal, so their sums suffice."""
    num_prefill = work.num_new_tokens - work.num_decodes
    chunk = num_prefill / work.num_prefills if work.num_prefills else 0.0
    cached = (work.prefill_pairs / num_prefill - chunk / 2) if num_prefill else 0.0
    scheduled = {
        "num_prefill_requests": work.num_prefills,
        "sum_prefill_tokens": num_prefill,
        "sum_prefill_kv_tokens": round(cached * work.num_prefills),
        "num_decode_requests": work.num_decodes,
        "sum_decode_kv_tokens": work.decode_context,
    }
    queued = dict.fromkeys(
        ("num_prefill_requests", "sum_prefill_tokens", "num_decode_requests", "sum_decode_kv_tokens"), 0
    )
    variances = {"var_prefill_length": 0.0, "var_decode_kv_tokens": 0.0}
    return {
        "version": 1,
        "worker_id": "",
        "dp_rank": 0,
        "counter_id": 0,
        "wall_time": 0.0,
        "scheduled_requests": scheduled | variances,
        "queued_requests": queued | variances,
    }


def _write_config(fields: dict[str, int], folder: Path) -> str:
    """Write a llama-shaped config.json and return its folder."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_key_value_heads": fields["num_attention_heads"],
        "max_position_embeddings": 2048,
        "vocab_size": 50_272,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config | fields))
    return str(folder)


if __name__ == "__main__":
    main()
