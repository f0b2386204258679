"""Decodes the strings of an input tensor, in place of the Python backend's own function.

The Python backend decodes all strings of a request before it shows the request, while the other requests of the model
wait. A million strings took it seconds. This function stops at the number that a request may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class TooMany:
    """Stands for the array of more strings than any request may have; only its shape is true."""

    def reshape(self, shape: Sequence[int]) -> NDArray[Any]:
        """Return an array of that shape, all of whose elements are one empty string."""
        return np.broadcast_to(np.array(b"", np.object_), tuple(shape))


def decode_strings(max_strings: int, encoded: NDArray[Any]) -> NDArray[Any] | TooMany:
    """Return the strings of `encoded`, each after its length in 4 bytes, or `TooMany` above `max_strings`."""
    data = encoded.data
    strings: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(strings) == max_strings:
            return TooMany()
        begin = offset + _LENGTH_BYTES
        offset = begin + int.from_bytes(data[offset:begin], "little")
        strings.append(bytes(data[begin:offset]))
    return np.array(strings, np.object_)
