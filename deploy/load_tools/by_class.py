"""Split a perf_analyzer export by class: requests, TTFT and the gaps between tokens, which its own table does not show.

python deploy/load_tools/by_class.py export.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

MS_PER_NS = 1e-6


def main() -> None:
    """Print a line per class."""
    parser = argparse.ArgumentParser(
        prog="python deploy/load_tools/by_class.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("export", type=Path, metavar="FILE", help="what perf_analyzer wrote as --profile-export-file")
    path = parser.parse_args().export
    try:
        experiments = json.loads(path.read_text())["experiments"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        parser.error(f"{path} is no export of perf_analyzer: {error!r}")
    for experiment in experiments:
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
