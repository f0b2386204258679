"""Tables of the simulated study, from the runs of a result file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.common.intervals import mean_interval, ratio_interval

Run = Mapping[str, Any]
FULL_ATTAINMENT = 0.999
LIMIT_BAR, RATIO_BAR, LOSS_BAR = 95, 1.2, 0.95  # percent of the limit; best-effort throughput over that of a baseline
_POLICY_ORDER = ("bros", "priority_tuned", "priority", "bros_paper", "round_robin", "tgi", "fcfs")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def on_all_seeds(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that compare, and the names of the others.

    In each cell of pair, SLOs and load, a policy compares if it ran on as many seeds as any other.
    """
    groups: dict[tuple[str, ...], dict[str, list[Run]]] = {}
    policies: dict[str, dict[str, None]] = {}  # of each kind of run, in order
    for run in runs:
        cell, policy = (run["group"], *map(str, _cell(run)), run["label"]), run["scenario"]["policy"]
        groups.setdefault(cell, {}).setdefault(policy, []).append(run)
        policies.setdefault(run["group"], {})[policy] = None
    kept, absent = [], []
    for (kind, pair, slos, load, _), by_policy in groups.items():
        num_seeds = max(map(len, by_policy.values()))
        for policy in policies[kind]:
            group = by_policy.get(policy, [])
            if len(group) == num_seeds:
                kept += group
            else:
                absent.append(f"{policy} on {pair} ({slos}, load {load}): {len(group)} of {num_seeds} seeds")
    return kept, sorted(absent)


def load_table(runs: Sequence[Run]) -> str:
    """One row per load and policy: attainment, latency and best-effort throughput, means over seeds."""
    header = ["load", "policy", "RT met both SLOs %", "TTFT met %", "TPOT met %", "TTFT p99 s", "TPOT p99 ms"]
    header += ["BE req/s", "BE tok/s", "% of limit", "scheduling %"]
    return markdown_table(header, [_load_row(load, policy, group) for (load, policy), group in _by_load(runs)])


def ratio_table(runs: Sequence[Run]) -> str:
    """Per load: best-effort throughput of `bros` over the best baseline whose attainment is equal or higher."""
    header = ["load", "bros: RT met both %", "best equal baseline", "its BE tok/s", "bros BE tok/s", "ratio"]
    header += ["best BE of any baseline", "bros over it"]
    rows = []
    for load in sorted({run["load"] for run in runs}):
        groups = {policy: group for (at, policy), group in _by_load(runs) if at == load}
        if "bros" in groups and len(groups) > 1:
            rows.append(_ratio_row(load, groups.pop("bros"), groups))
    return markdown_table(header, rows)


BARS_HEADER = ("pair", "SLOs", "load", "RT met both %", "% of limit", "best equal baseline", "best of all")


def bars_table(runs: Sequence[Run], kv_bound_pairs: Sequence[str]) -> str:
    """Return the bar of each pair, SLO and load, the result, and the verdict."""
    return markdown_table(BARS_HEADER, bars_rows(runs, kv_bound_pairs))


def bars_rows(runs: Sequence[Run], kv_bound_pairs: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the rows of `bars_table`."""
    rows = []
    for (pair, slos, load), groups in cells(runs).items():
        if "bros" in groups and len(groups) > 1:
            baselines = {policy: group for policy, group in groups.items() if policy != "bros"}
            verdicts = _bar_cells(load, groups["bros"], baselines, pair in kv_bound_pairs)
            rows.append((pair, slos, f"{load:g}", *verdicts))
    return rows


def cells(runs: Sequence[Run]) -> dict[tuple[str, str, float], dict[str, list[Run]]]:
    """Group runs by pair, SLOs and load, then by policy."""
    found: dict[tuple[str, str, float], dict[str, list[Run]]] = {}
    for key in sorted({_cell(run) for run in runs}):
        found[key] = {policy: group for (_, policy), group in _by_load([run for run in runs if _cell(run) == key])}
    return found


def ablation_table(runs: Sequence[Run], complete: Sequence[Run]) -> str:
    """`bros` complete and with parts switched off, on the same seeds."""
    header = (
        "variant",
        "RT met both SLOs",
        "TTFT p99 s",
        "BE tok/s",
        "against complete",
        "recomputed tok",
        "copied tok",
    )
    variants = {"complete": list(complete)}
    for run in runs:
        variants.setdefault(run["label"], []).append(run)
    rows = []
    for label, group in variants.items():
        recomputed = sum(run["recomputed_tokens"] for run in group) / len(group)
        copied = sum(run["copied_out_tokens"] + run["copied_in_tokens"] for run in group) / len(group)
        cells = (attainment(group), mean_of(group, p99("ttft_s")), mean_of(group, be_rate))
        rows.append((label, *cells, _ratio(group, complete), f"{recomputed:,.0f}", f"{copied:,.0f}"))
    return markdown_table(header, rows)


def trace_table(runs: Sequence[Run]) -> str:
    """One row per policy on a recorded trace."""
    header = ("policy", "RT met both SLOs %", "TTFT p50 / p99 s", "TPOT p50 / p99 ms", "BE tok/s", "% of limit")
    rows = []
    for policy in _policies(runs):
        group = [run for run in runs if run["scenario"]["policy"] == policy]
        ttft = f"{mean_of(group, p50('ttft_s'))} / {mean_of(group, p99('ttft_s'))}"
        tpot = f"{mean_of(group, p50('tpot_s'), 1e3)} / {mean_of(group, p99('tpot_s'), 1e3)}"
        rows.append((policy, attainment(group), ttft, tpot, mean_of(group, be_rate), limit_share(group)))
    return markdown_table(header, rows)


def step_model_table(document: Mapping[str, Any]) -> str:
    """The shipped step models with their held-out errors."""
    header = ("pair", "what", "KV tokens", "mean error", "p95", "max")
    rows = []
    for name, pair in document["pairs"].items():
        error = pair["heldout_error"]
        errors = [f"{error[key]:.1f} %" for key in ("mean_pct", "p95_pct", "max_pct")]
        rows.append((name, pair["description"], f"{pair['kv_tokens']:,}", *errors))
    return markdown_table(header, rows)


def verdict(is_met: bool) -> str:
    """Say whether a bar is met."""
    return "met" if is_met else "**missed**"


def be_rate(run: Run) -> float:
    """Best-effort output tokens per second: of whole requests so few end in the window that each is 0.3 % of them."""
    return float(run["be_tokens_per_s"])


def p50(name: str) -> Callable[[Run], float | None]:
    """Read the median of a distribution."""
    return lambda run: run[name]["p50"]


def p99(name: str) -> Callable[[Run], float | None]:
    """Read the 99th percentile of a distribution."""
    return lambda run: run[name]["p99"]


def attainment_of(group: Sequence[Run], kind: str = "both") -> float:
    """Mean attainment over runs."""
    return sum(run["rt_attainment"][kind] or 0.0 for run in group) / len(group)


def attainment(group: Sequence[Run], kind: str = "both") -> str:
    """Attainment in percent with its interval over seeds."""
    return mean_of(group, lambda run: run["rt_attainment"][kind], 100.0, digits=2)


def limit_share(group: Sequence[Run]) -> str:
    """Mean percentage of the upper bound."""
    return mean_of(group, lambda run: run["be_percent_of_limit"], digits=1)


def mean_of(
    group: Sequence[Run], read: Callable[[Run], float | None], factor: float = 1.0, digits: int | None = None
) -> str:
    """Mean over runs, ± the half width of its 95 % interval where it shows; – where there is nothing to average."""
    values = [factor * value for run in group if (value := read(run)) is not None]
    if not values:
        return "–"
    interval = mean_interval(values)
    text = f"{interval.estimate:.3g}" if digits is None else f"{interval.estimate:.{digits}f}"
    spread = f"{interval.half_width:.2g}"
    return text if len(values) == 1 or interval.half_width < 5e-4 * abs(interval.estimate) else f"{text} ± {spread}"


def _load_row(load: float, policy: str, group: Sequence[Run]) -> tuple[str, ...]:
    return (
        f"{load:g}",
        policy,
        attainment(group),
        attainment(group, "ttft"),
        attainment(group, "tpot"),
        mean_of(group, p99("ttft_s")),
        mean_of(group, p99("tpot_s"), 1e3),
        mean_of(group, lambda run: run["be_requests_per_s"]),
        mean_of(group, be_rate, digits=0),
        limit_share(group),
        mean_of(group, lambda run: run["scheduler_share"], 100.0, digits=1),
    )


def _cell(run: Run) -> tuple[str, str, float]:
    scenario = run["scenario"]
    return scenario["pair"], f"{scenario['ttft_slo_s']:g} s, {scenario['tpot_slo_s'] * 1e3:g} ms", run["load"]


def _bar_cells(
    load: float, bros: Sequence[Run], baselines: Mapping[str, Sequence[Run]], is_kv_bound: bool
) -> tuple[str, ...]:
    """The last four columns of `bars_table`. Best-effort work is held to its bars only where real-time is kept."""
    met, is_kept = attainment_of(bros), attainment_of(bros) >= FULL_ATTAINMENT
    is_better = all(met > attainment_of(baselines[policy]) for policy in ("fcfs", "priority") if policy in baselines)
    of_limit = sum(run["be_percent_of_limit"] or 0.0 for run in bros) / len(bros)
    best, best_any = best_equal(bros, baselines), _best_any(baselines)
    over_any = mean_be(bros) / mean_be(baselines[best_any])
    cells = [f"{100 * met:.2f}: {verdict(is_better if load >= 1.0 else is_kept)}", f"{of_limit:.1f}", "–"]
    cells.append(f"{best_any} × {over_any:.3f}")
    if is_kept:
        cells[3] += f": {verdict(over_any >= LOSS_BAR)}"
    if is_kept and not is_kv_bound:
        cells[1] += f": {verdict(of_limit >= LIMIT_BAR)}"
    if best and (best_be := mean_be(baselines[best])):
        over_best = mean_be(bros) / best_be
        cells[2] = f"{best} × {over_best:.3f}"
        if is_kept and is_kv_bound:
            cells[2] += f": {verdict(over_best >= RATIO_BAR)}"
    return tuple(cells)


def best_equal(bros: Sequence[Run], baselines: Mapping[str, Sequence[Run]]) -> str | None:
    """The baseline of most best-effort throughput among those that keep real-time as well as `bros` or fully."""
    floor = min(attainment_of(bros), FULL_ATTAINMENT)
    equal = [policy for policy, group in baselines.items() if attainment_of(group) >= floor]
    return max(equal, key=lambda policy: mean_be(baselines[policy]), default=None)


def _best_any(baselines: Mapping[str, Sequence[Run]]) -> str:
    return max(baselines, key=lambda policy: mean_be(baselines[policy]))


def _ratio_row(load: float, bros: Sequence[Run], baselines: Mapping[str, Sequence[Run]]) -> tuple[str, ...]:
    best, best_any = best_equal(bros, baselines), _best_any(baselines)
    return (
        f"{load:g}",
        attainment(bros),
        best or "none",
        mean_of(baselines[best], be_rate) if best else "–",
        mean_of(bros, be_rate),
        _ratio(bros, baselines[best]) if best else "–",
        f"{best_any} {mean_of(baselines[best_any], be_rate)} (RT {attainment(baselines[best_any])} %)",
        _ratio(bros, baselines[best_any]),
    )


def _ratio(candidate: Sequence[Run], baseline: Sequence[Run]) -> str:
    """Ratio of best-effort throughput over runs of the same seeds."""
    by_seed = [{run["scenario"]["seed"]: be_rate(run) for run in group} for group in (candidate, baseline)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    candidates, baselines = ([rates[seed] for seed in seeds] for rates in by_seed)
    if not seeds or min(*candidates, *baselines) <= 0.0:
        return "–"
    interval = ratio_interval(candidates, baselines)
    if len(seeds) == 1:
        return f"{interval.estimate:.3f}"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def mean_be(group: Sequence[Run]) -> float:
    """Return mean best-effort throughput over runs, in tokens per second."""
    return sum(map(be_rate, group)) / len(group)


def _policies(runs: Sequence[Run]) -> list[str]:
    present = {run["scenario"]["policy"] for run in runs}
    return [policy for policy in _POLICY_ORDER if policy in present]


def _by_load(runs: Sequence[Run]) -> list[tuple[tuple[float, str], list[Run]]]:
    loads = sorted({run["load"] for run in runs})
    keys = [(load, policy) for load in loads for policy in _policies(runs)]
    groups = [(key, [r for r in runs if (r["load"], r["scenario"]["policy"]) == key]) for key in keys]
    return [(key, group) for key, group in groups if group]
