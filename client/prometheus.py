"""Reading of Prometheus' text format, as far as `bros top` needs it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx2

from client.errors import UnavailableError
from client.transports.reading import AS_IT_IS, read_bounded

Labels = frozenset[tuple[str, str]]

_MAX_BYTES = 16 * 1024 * 1024
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Samples:
    """The values of one scrape: name -> series, each with its labels."""

    series: Mapping[str, Sequence[tuple[Labels, float]]]

    def sum(self, name: str, **labels: str) -> float | None:
        """Return the sum over all series of `name` that carry `labels`; None if there is none."""
        wanted = frozenset(labels.items())
        found = [value for have, value in self.series.get(name, ()) if wanted <= have]
        return sum(found) if found else None

    def bounds(self, name: str, **labels: str) -> list[str]:
        """Return the upper bounds of a histogram's buckets as they are written, ascending."""
        wanted = frozenset(labels.items())
        series = (have for have, _ in self.series.get(f"{name}_bucket", ()) if wanted <= have)
        return sorted({value for have in series for label, value in have if label == "le"}, key=float)


def parse_samples(text: str) -> Samples:
    """Return the samples in a scrape's text; comments and other lines are skipped."""
    series: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
    for line in text.splitlines():
        if sample := _SAMPLE.match(line):
            labels = frozenset(_LABEL.findall(sample["labels"] or ""))
            series[sample["name"]].append((labels, float(sample["value"])))
    return Samples(series)


def scrape(http: httpx2.Client, url: str) -> Samples:
    """Read a metrics endpoint. Raises UnavailableError."""
    try:
        with http.stream("GET", url, headers=AS_IT_IS) as response:
            return parse_samples(read_bounded(response.raise_for_status(), _MAX_BYTES).decode(errors="replace"))
    except (httpx2.HTTPError, ValueError) as error:
        raise UnavailableError(f"no metrics at {url}: {error}") from error
