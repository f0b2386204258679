"""Split a perf_analyzer export by class: requests, TTFT and the gaps between tokens, which its own table does not show.

python deploy/load_tools/by_class.py export.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

MS_PER_NS = 1e-6


def main() -> None:
    """Print a line per class."""
    for experiment in json.loads(Path(sys.argv[1]).read_text())["experiments"]:
        by_class = defaultdict(list)
        for request in experiment["requests"]:
            by_class[request["request_inputs"].get("priority_class", "by model")].append(request)
        for name, requests in sorted(by_class.items()):
            print(describe(name, requests))


def describe(name: str, requests: list[dict[str, list[int] | int]]) -> str:
    """Return median and 90th percentile of TTFT, and the median gap, in ms."""
    ttfts = [(request["response_timestamps"][0] - request["timestamp"]) * MS_PER_NS for request in requests]
    gaps = [(b - a) * MS_PER_NS for request in requests for a, b in pairwise(request["response_timestamps"])]
    p50, p90 = (statistics.quantiles(ttfts, n=10, method="inclusive")[i] for i in (4, 8))
    gap = statistics.median(gaps)
    return f"{name}: {len(requests)} requests, TTFT p50 {p50:.1f} ms, p90 {p90:.1f} ms, gap p50 {gap:.1f} ms"


if __name__ == "__main__":
    main()
