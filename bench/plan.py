"""Choose an SLO and a number of replicas: what real-time keeps and best-effort gets, simulated with the real scheduler.

    bros-plan --pair llama8b-a100 --rt-rate 30 --ttft-slo-s 0.4 --tpot-slo-s 0.1
    bros-plan --pair llama8b-a100 --rt-rate 14 --region --out bench/results/region.json

The first command says whether one replica keeps the SLOs. If not, it finds how many do: the number is doubled, then
bisected. Replicas share real-time requests in turn, and one of them is simulated. Each has as many best-effort requests
as it can serve. The second command finds the tightest SLOs that each policy keeps at each load (`bench.region`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backend.core.numbers import above, whole
from backend.policy.settings import POLICY_NAMES
from bench.common.command import UsageError, as_command, read_part
from bench.common.provenance import provenance
from bench.common.score import score_be, score_rt
from bench.region import region
from bench.scenario_flags import add_flags, given_fields, scenario_values
from bench.sim.scenario import Scenario
from bench.sim.step_models import Coefficients, Pair, load_pairs
from bench.simulate import Simulation

_REGION_PARTS = (0.25, 0.5, 0.75, 1.0, 1.25)  # of --rt-rate
_COPY_S_PER_TOKEN = 5e-6  # of a fitted file: 131 kB a token at 24 GB/s


_FIELDS = (
    "kv_tokens",
    "rt_rate",
    "rt_cv",
    "be_outstanding",
    "max_seqs",
    "ttft_slo_s",
    "tpot_slo_s",
    "warmup_s",
    "duration_s",
    "seed",
    "rt_trace",
    "rt_lengths",
    "be_lengths",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a number of replicas gives. Best-effort tokens per second are of all replicas together; times in seconds."""

    num_replicas: int
    num_rt: int
    rt_attainment: float
    be_tokens_per_s: float
    ttft_p99_s: float | None
    tpot_p99_s: float | None


def outcome(scenario: Scenario, pair: Pair, num_replicas: int) -> Outcome:
    """Simulate one of `num_replicas`, which gets every n-th real-time request."""
    simulation = Simulation(scenario, pair=pair, rt=scenario.rt_arrivals()[::num_replicas])
    simulation.run()
    records, window = simulation.records.values(), scenario.window
    rt, be = score_rt(records, scenario.slos, window), score_be(records, window)
    if not rt["num_rt"]:
        raise ValueError(f"no real-time request is scored at {num_replicas} replicas: raise --rt-rate or --duration-s")
    p99 = {name: (rt[name] or {}).get("p99") for name in ("ttft_s", "tpot_s")}
    be_tokens_per_s = num_replicas * be["be_tokens_per_s"]
    attained = rt["rt_attainment"]["both"]
    return Outcome(num_replicas, rt["num_rt"], attained, be_tokens_per_s, p99["ttft_s"], p99["tpot_s"])


def plan(scenario: Scenario, pair: Pair, goal: float, max_replicas: int) -> dict[str, Any]:
    """Return whether one replica keeps the SLOs for `goal` of the requests, and the fewest replicas that do.

    That number is None where `max_replicas` do not. `runs` holds the simulated runs.
    """
    runs: dict[int, Outcome] = {}

    def is_enough(num_replicas: int) -> bool:
        runs[num_replicas] = found = outcome(scenario, pair, num_replicas)
        print(
            f"{num_replicas} replicas: {100 * found.rt_attainment:.2f} % of {found.num_rt} requests in time, "
            f"{found.be_tokens_per_s:.0f} best-effort tokens/s",
            file=sys.stderr,
        )
        return found.rt_attainment >= goal

    low, high = 0, 1
    while not is_enough(high):
        if high == max_replicas:
            return _answer(scenario, pair, goal, None, runs)
        low, high = high, min(2 * high, max_replicas)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return _answer(scenario, pair, goal, high, runs)


def _answer(
    scenario: Scenario, pair: Pair, goal: float, num_replicas: int | None, runs: dict[int, Outcome]
) -> dict[str, Any]:
    return {
        "pair": pair.name,
        "goal": goal,
        "is_feasible": num_replicas == 1,
        "num_replicas": num_replicas,
        "be_tokens_per_s": runs[num_replicas].be_tokens_per_s if num_replicas else None,
        "runs": [asdict(runs[number]) for number in sorted(runs)],
        "scenario": scenario.to_json(),
    }


def read_pair(path: Path, kv_tokens: int) -> Pair:
    """Return the engine that `python -m tools.fit steps` fitted. Raises UsageError."""
    try:
        coefficients = Coefficients(**read_part("--step-model", path, "coefficients"))
    except TypeError as error:
        raise UsageError(f"--step-model {path} is no fitted step model: {error}") from error
    return Pair(path.stem, str(path), coefficients, kv_tokens, 0.0, _COPY_S_PER_TOKEN)


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 for a plan, 1 where no number of replicas is enough."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        pair, scenario = _inputs(options)
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    if options.region:
        rates = [part * scenario.rt_rate for part in _REGION_PARTS]
        result = {"pair": pair.name, **region(scenario, pair, rates, options.goal)}
    else:
        result = plan(scenario, pair, options.goal, options.max_replicas)
    text = json.dumps({**result, "provenance": provenance()}, indent=1)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n")
    return 0 if options.region or result["num_replicas"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bros-plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, base = parser.add_argument, Scenario(be_outstanding=256, warmup_s=30.0, duration_s=120.0)
    add("--pair", choices=sorted(load_pairs()), help=f"model and GPUs (default: {base.pair})")
    add(
        "--step-model",
        type=Path,
        metavar="FILE",
        help="instead: a fitted step model, as bench/results/step_model_cpu.json; needs --kv-tokens",
    )
    add(
        "--scenario",
        type=scenario_values,
        default={},
        metavar="NAME",
        help="traffic: a name in bench/scenarios or a JSON file of fields of a scenario; options win (default: none)",
    )
    add_flags(parser, _FIELDS, base)
    add("--policy", choices=POLICY_NAMES, help="not with --region, which takes several (default: bros)")
    add(
        "--goal",
        type=above(0.0, 1.0),
        default=0.99,
        help="0-1, part of real-time that must keep both SLOs (default: %(default)s)",
    )
    add("--max-replicas", type=whole(), default=64, help="give up beyond (default: %(default)s)")
    add(
        "--region",
        action="store_true",
        help="find the tightest SLOs that each policy keeps at each part of --rt-rate; minutes",
    )
    add("--out", type=Path, help="write the JSON result here (default: standard output)")
    parser.set_defaults(base=base)
    return parser


def _inputs(options: argparse.Namespace) -> tuple[Pair, Scenario]:
    """Return the checked engine and traffic."""
    scenario = replace(options.base, **{**options.scenario, **given_fields(options)})
    for name in ("ttft_slo_s", "tpot_slo_s", "max_seqs", "be_outstanding"):
        if getattr(scenario, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(scenario, name):g} must be above 0")
    scenario.check()
    if not scenario.rt_arrivals():
        raise ValueError("no real-time request arrives: give --rt-rate, --rt-trace or --scenario")
    if options.region and scenario.rt_trace:
        raise ValueError("--region takes --rt-rate, not a trace: it needs several loads")
    return _pair(options, scenario), scenario


def _pair(options: argparse.Namespace, scenario: Scenario) -> Pair:
    if options.step_model is None:
        return load_pairs()[scenario.pair]
    if options.pair is not None:
        raise ValueError("--pair and --step-model exclude each other")
    if options.kv_tokens is None:
        raise ValueError("--step-model needs --kv-tokens: the file does not say how many KV slots there are")
    return read_pair(options.step_model, options.kv_tokens)


if __name__ == "__main__":
    sys.exit(main())
