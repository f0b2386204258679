"""The options that name fields of a scenario, for `bench.simulate` and `bros-plan`: their words, units and ranges."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from backend.core.errors import BrosError
from backend.core.numbers import positive, real, whole
from backend.policy.settings import POLICY_NAMES, SchedulerSettings
from bench.sim.scenario import SCENARIOS, Scenario, read_lengths, read_trace
from bench.sim.step_models import load_pairs

NAMES = sorted(path.stem for path in SCENARIOS.glob("*.json"))


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str], base: Scenario) -> None:
    """Declare an option for each of the fields `names`; help shows the defaults of `base`, and None stands for them."""
    for name in names:
        flag, value = FLAGS[name], getattr(base, name)
        default = flag.without if value is None else f"{value:g}" if isinstance(value, float) else value
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=flag.read,
            choices=flag.choices,
            help=f"{flag.words} (default: {default})",
        )


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a scenario that the command line names."""
    return {name: value for name in FLAGS if (value := getattr(options, name, None)) is not None}


def setting(word: str) -> tuple[str, Any]:
    """Return the name and value of a setting of the scheduler: the type of `--set`."""
    name, _, text = word.partition("=")
    names = [field.name for field in fields(SchedulerSettings) if field.name != "policy"]
    if name not in names:
        raise argparse.ArgumentTypeError(f"{word!r}: write NAME=JSON; names are {', '.join(names)}")
    try:
        value = json.loads(text)
        msgspec.convert({name: value}, SchedulerSettings)
    except (BrosError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{word!r}: {error}") from error
    return name, value


def scenario_values(word: str) -> dict[str, Any]:
    """Return the fields that a JSON file or a scenario of bench/scenarios sets: a type of `--scenario`."""
    path = Path(word) if word.endswith(".json") else SCENARIOS / f"{word}.json"
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{word}: no such file, and no scenario; there are {', '.join(NAMES)}")
    try:
        values = json.loads(path.read_text())
        Scenario.from_json(values)
    except (OSError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{word}: {error}") from error
    return dict(values)


def _trace(name: str) -> str:
    return _read_by(read_trace, name)


def _lengths(name: str) -> str:
    return _read_by(read_lengths, name)


def _read_by(read: Callable[[str], object], name: str) -> str:
    """Return `name` if `read` finds there a file of its kind."""
    try:
        read(name)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from error
    return name


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of a field. without: words for a default of None."""

    words: str
    read: Callable[[str], object] = str
    choices: tuple[str, ...] | None = None
    without: str = "none"


_LENGTHS = "a distribution, or a CSV file of prompt_tokens,output_tokens"
_TRACE = "CSV file of timestamp_s,prompt_tokens,output_tokens"
FLAGS: Mapping[str, Flag] = {
    "pair": Flag("model and GPUs", choices=tuple(sorted(load_pairs()))),
    "policy": Flag("scheduler", choices=POLICY_NAMES),
    "rt_rate": Flag("real-time requests per second", real()),
    "rt_cv": Flag("coefficient of variation of the gaps between them; 1: Poisson", positive),
    "rt_burst": Flag("factor on --rt-rate in the first 10 s of each minute; with --rt-cv 1", real(1.0)),
    "rt_trace": Flag(f"real-time arrivals of this file instead of --rt-rate: a {_TRACE}", _trace),
    "rt_trace_speed": Flag("factor on the rate of --rt-trace", positive),
    "rt_lengths": Flag(f"prompts and outputs of real-time requests: {_LENGTHS}", _lengths),
    "rt_max_tokens": Flag("max_tokens of real-time requests; 0: as long as the output will be", whole(0)),
    "be_outstanding": Flag("best-effort requests in each replica at any time", whole(0)),
    "be_backlog": Flag("instead: best-effort requests at time 0", whole(0)),
    "be_rate": Flag("instead: best-effort requests per second, Poisson", real()),
    "be_lengths": Flag(f"prompts and outputs of best-effort requests: {_LENGTHS}", _lengths),
    "be_trace": Flag(f"best-effort requests of this file instead of --be-lengths: a {_TRACE}", _trace),
    "be_finish_by_s": Flag("deadline of a best-effort request, s after its arrival", positive),
    "ttft_slo_s": Flag("time to first token, s", positive),
    "tpot_slo_s": Flag("mean time per further token, s", positive),
    "other_slo_share": Flag("0-1, part of the real-time requests with the other SLOs", real(0.0, 1.0)),
    "other_ttft_slo_s": Flag("their time to first token, s", positive),
    "other_tpot_slo_s": Flag("their mean time per further token, s", positive),
    "other_prompt_tokens": Flag("their prompts, tokens; 0: as those of the others", whole(0)),
    "other_output_tokens": Flag("their outputs, tokens; 0: as those of the others", whole(0)),
    "kv_tokens": Flag("KV slots, tokens", whole(), without="the pair's"),
    "host_kv_tokens": Flag("KV slots on the host, tokens", whole(0), without="as many as --kv-tokens"),
    "block_size": Flag("KV slots of a block, tokens", whole()),
    "max_seqs": Flag("batch slots", whole()),
    "max_tokens_per_step": Flag("new tokens of a step", whole()),
    "step_noise": Flag("standard deviation of the lognormal factor on the time of a step", real()),
    "slowdown": Flag("factor on the time of steps in the second 10 s of each 20 s", real(1.0)),
    "stall_s": Flag("added to one step in 500, s", real()),
    "warmup_s": Flag("time before requests are scored, s", real()),
    "duration_s": Flag("time in which requests arrive, s", positive),
    "drain_s": Flag("time after that in which real-time requests may end, s", real()),
    "seed": Flag("of arrivals and lengths", whole(0)),
}
