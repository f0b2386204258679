"""Reading of Prometheus' text format, as far as `bros status` and `bros top` need it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2

from client.errors import UnavailableError

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Samples:
    """The values of one scrape, by name and labels."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def sum(self, name: str, **labels: str) -> float | None:
        """Return the sum over all series of `name` that carry `labels`; None if there is none."""
        wanted = frozenset(labels.items())
        found = [value for (have, series), value in self.values.items() if have == name and wanted <= series]
        return sum(found) if found else None


def parse_samples(text: str) -> Samples:
    """Return the samples in a scrape's text; comments and what is not a sample are skipped."""
    return Samples(dict(_parse_lines(text)))


def scrape(http: httpx2.Client, url: str) -> Samples:
    """Read a metrics endpoint. Raises UnavailableError."""
    try:
        return parse_samples(http.get(url).raise_for_status().text)
    except httpx2.HTTPError as error:
        raise UnavailableError(f"no metrics at {url}: {error}") from error


def _parse_lines(text: str) -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    for line in text.splitlines():
        if sample := _SAMPLE.match(line):
            yield (sample["name"], frozenset(_LABEL.findall(sample["labels"] or ""))), float(sample["value"])
