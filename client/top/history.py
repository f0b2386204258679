"""The last seconds of a server's state, and the rates and quantiles over them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from client.prometheus import Samples
from client.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Frame:
    """One look at the server at `time_s`; a part is None where it could not be had, and `problem` says why."""

    time_s: float
    snapshot: Snapshot | None
    samples: Samples | None
    problem: str | None = None


class History:
    """The frames of the last `window_s` seconds."""

    def __init__(self, window_s: float = 10.0) -> None:
        self.window_s = window_s
        self._frames: deque[Frame] = deque()

    def add(self, frame: Frame) -> None:
        """Take a frame in and forget those that are too old."""
        self._frames.append(frame)
        while len(self._frames) > 2 and self._frames[1].time_s < frame.time_s - self.window_s:
            self._frames.popleft()

    @property
    def is_full(self) -> bool:
        """Whether the frames cover the window."""
        return self._frames[-1].time_s - self._frames[0].time_s >= self.window_s

    @property
    def latest(self) -> Frame:
        return self._frames[-1]

    @property
    def previous_snapshot(self) -> Snapshot | None:
        """The snapshot before the latest one."""
        return self._frames[-2].snapshot if len(self._frames) > 1 else None

    def increase(self, name: str, **labels: str) -> float | None:
        """Return by how much a counter grew in the window; None if it is not there."""
        sampled = [frame.samples for frame in self._frames if frame.samples is not None]
        last = sampled[-1].sum(name, **labels) if sampled else None
        if last is None:
            return None
        return max(0.0, last - (sampled[0].sum(name, **labels) or 0.0))  # a restarted server counts from 0

    def rate(self, name: str, **labels: str) -> float | None:
        """Return a counter's increase per second."""
        increase = self.increase(name, **labels)
        times = [frame.time_s for frame in self._frames if frame.samples is not None]
        return increase / (times[-1] - times[0]) if increase is not None and len(times) > 1 else None

    def ratio(self, name: str, of: dict[str, str], **labels: str) -> float | None:
        """Return which part (0–1) of the increase with `labels` also has the labels `of`; None if there was none."""
        whole = self.increase(name, **labels)
        return (self.increase(name, **labels, **of) or 0.0) / whole if whole else None

    def quantile(self, name: str, q: float, **labels: str) -> float | None:
        """Return the q-quantile of what a histogram took in, linear within a bucket; None if it took nothing in."""
        latest = self.latest.samples
        bounds = latest.bounds(name, **labels) if latest is not None else []
        counts = [self.increase(f"{name}_bucket", le=bound, **labels) or 0.0 for bound in bounds]
        if not counts or counts[-1] == 0.0:
            return None
        return _interpolate([float(bound) for bound in bounds], counts, q * counts[-1])


def _interpolate(bounds: Sequence[float], counts: Sequence[float], rank: float) -> float:
    """Return the value at `rank` of the cumulative `counts` up to `bounds`; an infinite bucket has only a lower end."""
    index = next(index for index, count in enumerate(counts) if count >= rank)
    lower = bounds[index - 1] if index else 0.0
    below = counts[index - 1] if index else 0.0
    if math.isinf(bounds[index]) or counts[index] == below:
        return lower
    return lower + (bounds[index] - lower) * (rank - below) / (counts[index] - below)
