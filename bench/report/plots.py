"""Plots of the study: attainment and throughput over load, distributions, a burst as it happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axis import Axis

from bench.report.tables import Run, attainment_of, be_rate
from client.colors import BE_COLOR, RT_COLOR

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "bros", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
# Policies; blue and orange are those of the classes of service.
_STYLES = {
    "bros": ("#d62728", "-", "o"),
    "priority_tuned": ("#2ca02c", "-", "s"),
    "priority": ("#8fbc5a", "--", "s"),
    "bros_paper": ("#e377c2", "--", "o"),
    "round_robin": ("#9467bd", ":", "^"),
    "tgi": ("#8c564b", ":", "v"),
    "fcfs": ("#7f7f7f", "-.", "x"),
}


def plot_loads(runs: Sequence[Run], path: Path) -> None:
    """RT attainment, and BE throughput beside it, over load; a band spans the seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for policy in _present(runs):
        colour, line, marker = _STYLES[policy]
        style: Mapping[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
        groups = _groups(runs, policy)
        loads = list(groups)
        left.plot(loads, [100 * attainment_of(group) for group in groups.values()], label=policy, **style)
        rates = [[be_rate(run) for run in group] for group in groups.values()]
        right.plot(loads, [float(np.mean(rate)) for rate in rates], label=policy, **style)
        right.fill_between(loads, [min(r) for r in rates], [max(r) for r in rates], color=colour, alpha=0.15)
    left.set(xlabel="RT load (1: RT alone fills the machine)", ylabel="RT requests within both SLOs, %", ylim=(-3, 103))
    right.set(xlabel="RT load", ylabel="BE tokens/s", ylim=(0, None))
    left.yaxis.label.set_color(RT_COLOR)
    right.yaxis.label.set_color(BE_COLOR)
    right.legend(frameon=False, fontsize=8)
    _save(path)
    plt.close(figure)


def plot_distributions(runs: Sequence[Run], path: Path) -> None:
    """Cumulative distributions of TTFT and TPOT of one load, all seeds; dotted: the SLO."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    slos = runs[0]["scenario"]
    for axis, name, slo_s in ((axes[0], "ttft_s", slos["ttft_slo_s"]), (axes[1], "tpot_s", slos["tpot_slo_s"])):
        for policy in _present(runs):
            colour, line, _ = _STYLES[policy]
            stored = [r["cdf"][name] for r in runs if r["scenario"]["policy"] == policy and r["cdf"][name]]
            if stored:
                values = np.sort(np.concatenate(stored))
                axis.plot(values, np.linspace(0, 1, len(values)), color=colour, linestyle=line, label=policy)
        axis.axvline(slo_s, color="black", linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel=f"{name[:4].upper()}, s", ylabel="part of RT requests", ylim=(0, 1.01))
        axis.yaxis.label.set_color(RT_COLOR)
        _label_plainly(axis.xaxis)
    axes[1].legend(frameon=False, fontsize=8, loc="upper left")
    _save(path)
    plt.close(figure)


def plot_burst(runs: Sequence[Run], path: Path) -> None:
    """One bursty run: RT arrivals, TTFT of each request by its arrival, BE tokens per second."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True, height_ratios=(1, 2, 2))
    seconds = np.arange(0.0, runs[0]["scenario"]["duration_s"] + 1)
    arrivals = np.asarray([arrival_s for arrival_s, _ in runs[0]["timeline"]["rt"]])
    axes[0].bar(seconds[:-1] + 0.5, np.histogram(arrivals, seconds)[0], width=1.0, color=RT_COLOR)
    for run in runs:
        colour, line, _ = _STYLES[run["scenario"]["policy"]]
        first_tokens = np.asarray([(a, t) for a, t in run["timeline"]["rt"] if t is not None])
        axes[1].plot(*first_tokens.T, ".", markersize=3, color=colour, label=run["scenario"]["policy"])
        rate = np.convolve(run["timeline"]["be_tokens"], np.ones(3) / 3, mode="same")
        axes[2].plot(seconds[:-1] + 0.5, rate, color=colour, linestyle=line)
    axes[1].axhline(runs[0]["scenario"]["ttft_slo_s"], color="black", linestyle=":", linewidth=1)
    axes[0].set(ylabel="RT arrivals/s")
    axes[1].set(ylabel="TTFT, s", yscale="log")
    axes[2].set(ylabel="BE tokens/s", xlabel="time, s", ylim=(0, None))
    for axis, colour in zip(axes, (RT_COLOR, RT_COLOR, BE_COLOR), strict=True):
        axis.yaxis.label.set_color(colour)
    axes[1].legend(frameon=False, fontsize=8)
    _save(path)
    plt.close(figure)


def plot_region(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The tightest SLOs kept, over load: a policy keeps what lies above its line; beyond its last point, none."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, name in zip(axes, ("ttft_slo_s", "tpot_slo_s"), strict=True):
        for policy in (policy for policy in _STYLES if any(point["policy"] == policy for point in points)):
            own = [point for point in points if point["policy"] == policy and point[name] is not None]
            colour, line, marker = _STYLES[policy]
            style: Mapping[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
            axis.plot([point["rt_rate"] for point in own], [point[name] for point in own], label=policy, **style)
        axis.set(xlabel="RT requests/s", ylabel=f"tightest {name[:4].upper()} SLO kept, s", yscale="log")
        axis.yaxis.label.set_color(RT_COLOR)
        _label_plainly(axis.yaxis)
    axes[1].legend(frameon=False, fontsize=8)
    _save(path)
    plt.close(figure)


def _label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2 and 5 of each decade, or 1 where it has more than two."""
    low, high = axis.get_view_interval()
    digits = "125" if high / low < 100 else "1"
    axis.set_major_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else "")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else "")


def _present(runs: Sequence[Run]) -> list[str]:
    present = {run["scenario"]["policy"] for run in runs}
    return [policy for policy in _STYLES if policy in present]


def _groups(runs: Sequence[Run], policy: str) -> dict[float, list[Run]]:
    groups: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run["load"]):
        if run["scenario"]["policy"] == policy:
            groups.setdefault(run["load"], []).append(run)
    return groups


def _save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})
