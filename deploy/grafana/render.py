"""Draw the dashboard's panels from a running server: one picture of what Grafana would show.

    python deploy/grafana/render.py --metrics 127.0.0.1:8002 --for-s 90 --out docs/img/dashboard.png

Starts a Prometheus of its own (from PATH; Debian's package `prometheus`) that scrapes the server every second. Waits
while you put load on the server. Then asks Prometheus every query of the dashboard.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import matplotlib.pyplot as plt
from make_dashboard import PANELS, PANELS_PER_ROW, Panel
from matplotlib.axes import Axes

from client.colors import CLASS_COLORS
from client.transports.loopback import direct_mounts

RATE_INTERVAL = "10s"
START_TIMEOUT_S = 30.0
FREE_COLOR = "#e1e4e8"  # of memory that no request holds
OTHER_COLORS = ("#2ca02c", "#9467bd", "#8c564b", "#7f7f7f")  # of series that no class owns
LEGEND_SPACE = 1.2  # height of a plot over its highest value: the legend covers no line
UNITS = {"s": "s", "percentunit": "share", "short": "", "reqps": "1/s"}


def main() -> None:
    """Scrape, then draw."""
    parser = argparse.ArgumentParser(
        prog="python deploy/grafana/render.py", description="Draw the dashboard's panels from a running server."
    )
    parser.add_argument("--metrics", default="127.0.0.1:8002", help="host:port of the metrics (default: %(default)s)")
    parser.add_argument("--for-s", type=float, default=90.0, help="seconds to watch (default: %(default)s)")
    parser.add_argument("--listen", default="127.0.0.1:19090", help="address for Prometheus (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    if shutil.which("prometheus") is None:
        parser.error("no `prometheus` on PATH: Debian has it in the package `prometheus`")
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "prometheus.json"  # JSON is YAML
        job = {"job_name": "bros", "static_configs": [{"targets": [arguments.metrics]}]}
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
        flags = [f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
        command = ["prometheus", *flags, f"--web.listen-address={arguments.listen}", "--log.level=error"]
        with subprocess.Popen(command) as prometheus:
            try:
                wait_until_ready(arguments.listen)
                print(f"watching {arguments.metrics} for {arguments.for_s:g} s", file=sys.stderr)
                time.sleep(arguments.for_s)
                draw(arguments.listen, arguments.for_s, arguments.out)
            finally:
                prometheus.terminate()


def wait_until_ready(address: str) -> None:
    """Wait until Prometheus answers. Raises TimeoutError."""
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s:
        try:
            ask(address, "/-/ready", timeout_s=1.0)
        except httpx2.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no Prometheus at {address} after {START_TIMEOUT_S:g} s")


def draw(address: str, duration_s: float, out: Path) -> None:
    """Ask every query over the last `duration_s` seconds and draw one plot per panel."""
    rows = -(-len(PANELS) // PANELS_PER_ROW)
    figure, axes = plt.subplots(rows, PANELS_PER_ROW, figsize=(15, 2.6 * rows), layout="constrained", squeeze=False)
    end_s = time.time()
    for panel, axis in zip(PANELS, axes.flat, strict=False):
        plot(panel, axis, address, (end_s - duration_s, end_s))
    figure.savefig(out, dpi=80)


def plot(panel: Panel, axis: Axes, address: str, span_s: tuple[float, float]) -> None:
    """Draw one panel."""
    lines = {}
    for legend, query in panel.queries.items():
        for series in series_of(address, query, span_s):
            name = legend
            for label, value in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            lines[name] = [(float(at) - span_s[0], float(value)) for at, value in series["values"]]
    if panel.is_stacked and lines:
        times = sorted({at for points in lines.values() for at, _ in points})
        names = sorted(lines, reverse=True)  # real-time at the floor, best-effort at the ceiling
        heights = [[dict(lines[name]).get(at, 0.0) for at in times] for name in names]
        axis.stackplot(times, heights, labels=names, colors=colors(names))
    else:
        for (name, points), color in zip(sorted(lines.items()), colors(sorted(lines)), strict=True):
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2, color=color)
    axis.set_title(panel.title, fontsize=10)
    axis.set_ylabel(UNITS[panel.unit], fontsize=8)
    axis.set_xlim(0, span_s[1] - span_s[0])
    axis.set_ylim(0, LEGEND_SPACE * axis.get_ylim()[1])
    axis.tick_params(labelsize=8)
    if lines:
        axis.legend(fontsize=7, loc="upper left", ncols=len(lines), frameon=False)


def colors(names: list[str]) -> list[str]:
    """Return the colour of each series: that of its class or of free memory, or the next of the others."""
    others = itertools.cycle(OTHER_COLORS)
    fixed = CLASS_COLORS | {"free": FREE_COLOR}
    return [fixed.get(name.split()[0]) or next(others) for name in names]


def ask(address: str, path: str, timeout_s: float = 30.0, **parameters: str | float) -> httpx2.Response:
    """Return what Prometheus answers. Raises httpx2.HTTPError."""
    with httpx2.Client(timeout=timeout_s, mounts=direct_mounts(address)) as http:
        return http.get(f"http://{address}{path}", params=parameters).raise_for_status()


def series_of(address: str, query: str, span_s: tuple[float, float]) -> list[dict[str, Any]]:
    """Return the series of a range query, one sample a second."""
    query = query.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")
    answer = ask(address, "/api/v1/query_range", query=query, start=span_s[0], end=span_s[1], step=1)
    return list(answer.json()["data"]["result"])


if __name__ == "__main__":
    main()
