"""What prefix caching brings: chats and a batch job on a real server, hit rates in the simulator, the cost of a look.

    python -m bench.prefix live --out bench/results/prefix-live.json [--seeds 0 1 2] [-- FLAGS OF bros-serve]
    python -m bench.prefix sim  --out bench/results/prefix-sim.json  [--seeds 0 1 2 3 4] [--scale 0.2] [--jobs 2]
    python -m bench.prefix cost     the lookup of a prompt of 2,000 tokens
    python -m bench.prefix step     a step of bench.micro with the cache, which finds nothing, against one without
    python -m bench.prefix step --before ../old     also against one of an older checkout

`live`: 8 conversations of 6 turns with think times, then a file of best-effort requests with one system prompt. Each
seed runs on a server with the cache, then on one without; `--without-first` turns that around. `computed_ratio` says
which part of the prompt tokens was computed: no time can fall further. `bars_are_met` is the verdict.

`sim`: conversations, and long documents with common beginnings, at the scale of a GPU. Two LRU oracles stand
beside them (bench/sim/prefix_oracle.py). A third trace adds a flood of best-effort prompts, a fourth a file with many
system prompts. Eviction by class, eviction by last use alone, requests in order of arrival, a host part, and no cache
are compared. A file that has some of the runs, from the same commit, is completed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from backend.core.numbers import real, whole
from bench.common.command import UsageError, as_command, read_json
from bench.common.provenance import provenance
from bench.common.stats import percentiles
from bench.common.workers import worker_processes
from bench.live.server import running_server
from bench.sim.prefix_traces import COMPARED, simulate
from client import AsyncClient
from kv.manager import KVCacheManager
from kv.prefixes import Prefix
from kv.types import KVConfig, Side

_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 1_000, 30_000
_COST_TOKENS, _COST_TRIES = 2_000, 2_000
_WARM_STEPS, _STEPS_A_TURN = 300, 20  # of bench.micro's loads
_Simulated: TypeAlias = tuple[str, int, str]  # trace, seed, cache
_SETTINGS = {"with": "true", "without": "false"}
_COMPARED: Sequence[Callable[[Mapping[str, Any]], float]] = (
    lambda run: float(run["first_ttft_s"]["p50"]),
    lambda run: float(run["later_ttft_s"]["p50"]),
    lambda run: float(run["be_requests_per_s"]),
)
_MAX_TTFT_RATIO, _MIN_RATE_RATIO = 0.35, 3.0  # with the cache, divided by without


@as_command
def main(argv: list[str] | None = None) -> int:
    """Run one part; print its result, and write it with its provenance."""
    mine, flags = _split(sys.argv[1:] if argv is None else argv)
    options, source = _parser().parse_args(mine), provenance()  # of the code that runs
    options.flags = flags
    if options.before is not None and not (options.before / "bench" / "micro.py").is_file():
        raise UsageError(f"--before {options.before} is no checkout: it has no bench/micro.py")
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "live": _live,
        "sim": _sim,
        "cost": lambda _: dict(lookup_cost()),
        "step": lambda options: step_cost(options.before),
    }
    result = {"provenance": source, "part": options.part} | parts[options.part](options)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


# --- a real server ------------------------------------------------------------------------------------------------


def _live(options: argparse.Namespace) -> dict[str, Any]:
    runs = []
    for seed in options.seeds:
        order = reversed(_SETTINGS) if options.without_first else _SETTINGS
        for name in order:
            is_on = _SETTINGS[name]
            flags = [*options.flags, "--set", f"scheduler.prefix_caching={is_on}"]
            with running_server(flags) as address:
                runs.append({"cache": name, "seed": seed, **asyncio.run(_measure(address.grpc_url, seed, options))})
            print(json.dumps(runs[-1]), file=sys.stderr)
    first, later, rates = (
        {name: median(value(run) for run in runs if run["cache"] == name) for name in _SETTINGS} for value in _COMPARED
    )
    ratios = {
        "first_ttft_ratio": first["with"] / first["without"],  # nothing is cached: 1 where the load is alike
        "later_ttft_ratio": later["with"] / later["without"],  # to be at most 0.35
        "be_rate_ratio": rates["with"] / rates["without"],  # to be at least 3
    }
    are_met = ratios["later_ttft_ratio"] <= _MAX_TTFT_RATIO and ratios["be_rate_ratio"] >= _MIN_RATE_RATIO
    return {"runs": runs, **ratios, "bars_are_met": are_met}


class _Answer(NamedTuple):
    """What one request got. num_prompt, num_cached: tokens of its prompt, and those that the cache had."""

    ttft_s: float
    num_prompt: int
    num_cached: int
    token_ids: list[int]


async def _measure(url: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    async with AsyncClient(f"grpc://{url}") as client:
        await client.generate([1] * 16, priority_class="rt", max_tokens=2)  # warm up
        chats = [_chat(client, np.random.default_rng([seed, index]), options) for index in range(options.chats)]
        turns = await asyncio.gather(*chats)
        system = rng.integers(_FIRST_TOKEN_ID, _LAST_TOKEN_ID, options.system_tokens).tolist()
        own = rng.integers(_FIRST_TOKEN_ID, _LAST_TOKEN_ID, (options.be_requests, options.own_tokens)).tolist()
        start_s = time.monotonic()
        lines = await asyncio.gather(*(_answer(client, [*system, *tokens], "be", options.be_output) for tokens in own))
        be_s = time.monotonic() - start_s
    later = [turn for chat in turns for turn in chat[1:]]
    return {
        "first_ttft_s": percentiles([chat[0].ttft_s for chat in turns]),
        "later_ttft_s": percentiles([turn.ttft_s for turn in later]),
        "later_computed_ratio": _computed_ratio(later),
        "be_requests_per_s": options.be_requests / be_s,
        "be_computed_ratio": _computed_ratio(lines),
    }


async def _chat(client: AsyncClient, rng: np.random.Generator, options: argparse.Namespace) -> list[_Answer]:
    """Take turns in one conversation."""
    history: list[int] = []
    turns = []
    for _ in range(options.turns):
        num_tokens = int(min(max(rng.lognormal(np.log(options.turn_tokens), 0.6), 8), 600))
        history += rng.integers(_FIRST_TOKEN_ID, _LAST_TOKEN_ID, num_tokens).tolist()
        turns.append(await _answer(client, history, "rt", options.chat_output))
        history += turns[-1].token_ids
        await asyncio.sleep(float(rng.exponential(options.think_s)))
    return turns


async def _answer(client: AsyncClient, prompt: list[int], cls: Any, max_tokens: int) -> _Answer:
    answer = await client.generate(prompt, priority_class=cls, max_tokens=max_tokens, ignore_eos=True)
    assert answer.metrics is not None, "the server was asked for metrics"
    assert answer.metrics.ttft_s is not None, "an answer without a first token"
    metrics = answer.metrics
    return _Answer(answer.metrics.ttft_s, len(prompt), metrics.num_cached_tokens, list(answer.token_ids))


def _computed_ratio(answers: Sequence[_Answer]) -> float:
    num_tokens = sum(answer.num_prompt for answer in answers)
    return 1.0 - sum(answer.num_cached for answer in answers) / num_tokens


# --- the simulator ------------------------------------------------------------------------------------------------


def _sim(options: argparse.Namespace) -> dict[str, Any]:
    source = provenance()
    wanted = [(name, seed, cache) for seed in options.seeds for name, caches in COMPARED.items() for cache in caches]
    runs = _runs_of(options.out, source["commit"], options.scale)
    missing = [run for run in wanted if run not in runs]
    with worker_processes(options.jobs) as pool:
        tasks = {pool.submit(simulate, *run, options.scale): run for run in missing}
        for task in as_completed(tasks):
            runs[tasks[task]] = task.result()
            print(json.dumps([*tasks[task], task.result()]), file=sys.stderr)
            if options.out is not None:
                options.out.write_text(json.dumps(_sim_result(source, options.scale, runs)))
    return _sim_result(source, options.scale, {run: runs[run] for run in wanted})


def _sim_result(source: Any, scale: float, runs: Mapping[_Simulated, dict[str, Any]]) -> dict[str, Any]:
    named = [{"trace": name, "seed": seed, "cache": cache, **run} for (name, seed, cache), run in runs.items()]
    return {"provenance": source, "part": "sim", "scale": scale, "runs": named}


def _runs_of(path: Path | None, commit: str, scale: float) -> dict[_Simulated, dict[str, Any]]:
    """Return the runs that a file has from `commit` at `scale`."""
    if path is None or not path.exists():
        return {}
    result = read_json("--out", path)
    if (result["provenance"]["commit"], result["scale"]) != (commit, scale):
        return {}
    return {(run.pop("trace"), run.pop("seed"), run.pop("cache")): run for run in result["runs"]}


# --- a look -------------------------------------------------------------------------------------------------------


def lookup_cost(num_tokens: int = _COST_TOKENS, tries: int = _COST_TRIES) -> dict[str, float]:
    """Return the microseconds that a request of `num_tokens` takes to be looked up where all of it is cached."""
    kv = KVCacheManager(KVConfig(num_blocks=1_024, max_seq_len=8_192))
    token_ids = tuple(range(num_tokens))
    row = kv.open(Side.HEAD)
    assert kv.grow(row, num_tokens), "the pool is too small"
    kv.begin_step()
    kv.leave_cached(row, Prefix(token_ids), num_tokens)
    costs_us = []
    for _ in range(tries):
        start_s = time.perf_counter()
        num_found = kv.find(Prefix(token_ids))
        costs_us.append((time.perf_counter() - start_s) * 1e6)
        assert num_found == num_tokens - 1, f"{num_found} of {num_tokens} tokens were found"
    return {"num_tokens": num_tokens, "median_us": median(costs_us), "p99_us": float(np.quantile(costs_us, 0.99))}


# --- a step without hits ------------------------------------------------------------------------------------------


def step_cost(before: Path | None = None, sittings: int = 12, turns: int = 40) -> dict[str, Any]:
    """Return the microseconds of a step with the cache, which finds nothing, and of one without; and their ratio.

    before: a checkout of another commit, whose step without the cache is compared too. Each load has a process of its
    own, and they take turns. A process may lie well or badly in memory, so each sitting starts new ones. Of its turns
    the fastest tenth counts: what else runs on the machine only adds.
    """
    here = Path(__file__).resolve().parents[1]
    loads: dict[str, tuple[Path, list[str]]] = {"without": (here, []), "with": (here, ["cache"])}
    loads |= {"before": (before, [])} if before is not None else {}
    costs_us: dict[str, list[float]] = {name: [] for name in loads}
    for sitting in range(sittings):
        with ExitStack() as stack:
            turns_of = [stack.enter_context(_load(*load)) for load in loads.values()]
            taken_s = [[take_turn() for take_turn in turns_of] for _ in range(turns)]
        for name, cost_s in zip(loads, np.quantile(taken_s, 0.1, axis=0).tolist(), strict=True):
            costs_us[name].append(1e6 * cost_s)
        print(f"{sitting + 1} of {sittings} sittings", file=sys.stderr)
    result: dict[str, Any] = {f"{name}_us": median(costs) for name, costs in costs_us.items()}
    result |= _ratio("ratio", costs_us["with"], costs_us["without"])
    if before is not None:
        asked = ("git", "rev-parse", "--short=12", "HEAD")
        result["before"] = subprocess.run(asked, cwd=before, capture_output=True, text=True).stdout.strip()
        result |= _ratio("ratio_to_before", costs_us["with"], costs_us["before"])
    return result


def _ratio(name: str, costs: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    p25, p50, p75 = np.quantile(np.divide(costs, others), (0.25, 0.5, 0.75)).tolist()
    return {name: p50, f"{name}_p25": p25, f"{name}_p75": p75}


_LOAD = f"""
import gc, sys
from bench.micro import Load
from backend.core.request import PriorityClass
load = Load(256, 10_000, "bros", PriorityClass.BEST_EFFORT, *map(bool, sys.argv[1:]))
for _ in range({_WARM_STEPS}):
    load.step()
gc.collect()
gc.freeze()
print(flush=True)
for line in sys.stdin:
    print(*[load.step() for _ in range(int(line))], flush=True)
"""


@contextmanager
def _load(checkout: Path, has_cache: Sequence[str]) -> Iterator[Callable[[], float]]:
    """Run a load of `bench.micro` of a checkout. Give what takes a turn: it returns the median seconds of its steps."""
    command = (sys.executable, "-c", _LOAD, *has_cache)
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None, "a pipe was asked for"
        assert process.stdout is not None, "a pipe was asked for"
        to_load, from_load = process.stdin, process.stdout

        def take_turn() -> float:
            print(_STEPS_A_TURN, file=to_load, flush=True)
            return median(map(float, from_load.readline().split()))

        from_load.readline()  # it is warm
        yield take_turn
        to_load.close()


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before `--` and those behind it."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:index]), list(arguments[index + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.prefix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("live", "sim", "cost", "step"))
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--out", type=Path, help="write the result to a JSON file with its provenance")
    parser.add_argument("--scale", type=real(0.01), default=1.0, help="sim: part of requests and pool (default: 1)")
    parser.add_argument("--before", type=Path, help="step: a checkout of an older commit to compare with")
    parser.add_argument("--without-first", action="store_true", help="live: start without the cache")
    parser.add_argument("--jobs", type=whole(), default=1, help="sim: processes (default: 1)")
    numbers: Sequence[tuple[str, float, str]] = (
        ("chats", 8, "conversations"),
        ("turns", 6, "turns of each"),
        ("turn-tokens", 120, "median tokens of a turn"),
        ("chat-output", 48, "tokens of an answer"),
        ("think-s", 2.0, "mean seconds between turns"),
        ("be-requests", 200, "requests of the file"),
        ("system-tokens", 512, "tokens that they share"),
        ("own-tokens", 64, "tokens of their own"),
        ("be-output", 16, "tokens of an answer"),
    )
    for name, default, words in numbers:
        parser.add_argument(
            f"--{name}",
            type=whole() if isinstance(default, int) else real(),
            default=default,
            help=f"live: {words} (default: {default})",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
