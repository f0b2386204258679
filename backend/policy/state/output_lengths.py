"""How long outputs become, beside how long they may."""

from __future__ import annotations

import numpy as np

NUM_SIZES = 24  # of max_tokens, by powers of two
_NUM_KEPT = 64  # outputs for each size


class OutputLengths:
    """The last outputs to end, for each size of max_tokens those that were allowed as much, or more.

    Requests for fewer tokens tell nothing: one of a single token always reaches its end.

    ratios   float64 [sizes, kept], length / max_tokens, ascending; infinite behind the first `counts` of a size
    counts   int64 [sizes]
    """

    def __init__(self) -> None:
        self.ratios = np.full((NUM_SIZES, _NUM_KEPT), np.inf)
        self.counts = np.zeros(NUM_SIZES, np.int64)
        self._last = self.ratios.copy()  # as they came, over the oldest ones
        self._num_noted = self.counts.copy()

    def note(self, num_output: int, max_output: int) -> None:
        """Learn that an output ended with `num_output` tokens of `max_output` >= 1."""
        sizes = np.arange(min(max_output.bit_length(), NUM_SIZES - 1) + 1)
        self._last[sizes, self._num_noted[sizes] % _NUM_KEPT] = num_output / max_output
        self._num_noted[sizes] += 1
        self.ratios[sizes] = np.sort(self._last[sizes])
        self.counts[sizes] = np.minimum(self._num_noted[sizes], _NUM_KEPT)
