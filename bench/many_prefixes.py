"""Four engines with prefix caches behind NVIDIA Dynamo's frontend: the worth of routing by prefix.

    python -m bench.many_prefixes --out bench/results/many.json         four minutes a seed; after `make serve-many`

Conversations and jobs share prompts (bench/live/shared_prompts.py); the cache of one engine is too small for all of
them. The result is the key `prefixes` of the file; its other keys stay. Engines and frontend are those of
`bench.many`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backend.core.numbers import above, real, whole
from bench.common.command import as_command
from bench.common.output import merge_into
from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Window, score_be, score_rt
from bench.live.counting import CountingTarget
from bench.live.shared_prompts import SharedLoad, Sizes, drive_shared, hit_share
from bench.many import CLASS_HEADER, REPLICAS, SLOS, WRONG, Way, engine_json, serving, what_went_wrong

KV_BLOCKS = 1024
WAYS = (
    Way("round robin", ("--router", "round-robin"), has_faults=False),
    Way("least loaded", ("--router", "least-loaded"), has_faults=False),
    Way("KV-aware, predicted", ("--router", "kv", "--no-kv-events"), has_faults=False),
    Way("KV-aware, events only", ("--router", "kv", "--predict-s", "0"), has_faults=False),
    Way("KV-aware, events and predicted", ("--router", "kv"), has_faults=False),
)
_WARM_UP_S, _DRAIN_S = 10.0, 10.0


def engine_with_prefixes() -> dict[str, Any]:
    """Return the configuration of each engine: one of bench.many's, smaller, with a prefix cache."""
    engine = engine_json(1.0)
    return engine | {"sim": engine["sim"] | {"num_blocks": KV_BLOCKS}, "scheduler": {"prefix_caching": True}}


def run_way(way: Way, load: SharedLoad) -> dict[str, Any]:
    """Serve, measure and score one way of routing."""
    engines = [engine_with_prefixes()] * REPLICAS
    with tempfile.TemporaryDirectory() as directory, serving(way, Path(directory), engines) as (url, _):

        async def main() -> tuple[list[RequestRecord], CountingTarget]:
            target = CountingTarget(f"{url}/v1", "bros", CLASS_HEADER)
            try:
                return await drive_shared(target, load), target
            finally:
                await target.close()

        records, target = asyncio.run(main())
    return {"name": way.name, "seed": load.seed, **score(records, target, load.duration_s)}


def score(records: list[RequestRecord], target: CountingTarget, duration_s: float) -> dict[str, Any]:
    """Return the worth of a run: hits and attainment after the warm-up, and what went wrong at any time.

    Hits are of requests answered after it: of those that arrive then, some routers answer none in time.
    """
    window = Window(_WARM_UP_S, duration_s)
    warm = [each for each in records if each.is_finished and (each.finished_s or 0.0) >= _WARM_UP_S]
    ids = {kind: [each.request_id for each in warm if each.is_rt == (kind == "rt")] for kind in ("rt", "be")}
    return {
        **score_rt(records, SLOS, window),
        **score_be(records, window),
        "hits": {"both": hit_share(target, ids["rt"] + ids["be"])}
        | {kind: hit_share(target, of_kind) for kind, of_kind in ids.items()},
        **what_went_wrong(records, target),
    }


@as_command
def main() -> int:
    """Run the command line; return the exit status: 1 where a stream was lost or a token was wrong."""
    arguments = _parser().parse_args()
    sizes = Sizes(job_rate=arguments.job_rate, num_talks=arguments.talks)
    facts = {"replicas": REPLICAS, "kv_tokens": KV_BLOCKS * 16, "duration_s": arguments.duration_s}
    part: dict[str, Any] = {"provenance": provenance(), **facts, "slos": asdict(SLOS), "sizes": asdict(sizes)}
    part["runs"] = []
    for seed in range(arguments.seeds):
        load = SharedLoad(sizes, SLOS, arguments.duration_s, _DRAIN_S, seed)
        for way in WAYS:
            print(f"{way.name}, seed {seed}", file=sys.stderr, flush=True)
            part["runs"].append(run_way(way, load))
            print(f"  {_summary(part['runs'][-1])}", file=sys.stderr, flush=True)
            merge_into(arguments.out, {"prefixes": part})
    return int(any(run[name] for run in part["runs"] for name in WRONG))


def _summary(run: dict[str, Any]) -> str:
    hits = ", ".join(f"{kind} {share:.1%}" for kind, share in run["hits"].items() if share is not None)
    wrong = ", ".join(f"{name} {run[name]}" for name in WRONG)
    attained = run["rt_attainment"]["both"] or 0.0
    return (
        f"hits {hits}; RT {attained:.1%} of {run['num_rt']}, BE {run['be_tokens_per_s']:.0f} tokens/s, "
        f"{run['num_requests']} requests, {wrong} {run['errors']}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.many_prefixes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=whole(), default=1, help="runs of each way (default: 1)")
    parser.add_argument(
        "--duration-s", type=above(_WARM_UP_S), default=30.0, help="requests arrive for so long (default: 30)"
    )
    parser.add_argument(
        "--job-rate", type=real(), default=Sizes().job_rate, help="best-effort requests a second (default: %(default)g)"
    )
    parser.add_argument("--talks", type=whole(0), default=Sizes().num_talks, help="conversations at once (default: 32)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write to, under the key `prefixes`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
