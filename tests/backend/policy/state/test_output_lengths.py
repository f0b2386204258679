"""The lengths of the last outputs, apart by how long they might have become."""

from __future__ import annotations

import numpy as np

from backend.policy.state.output_lengths import NUM_SIZES, OutputLengths


def kept(lengths: OutputLengths, size: int) -> list[float]:
    return [float(ratio) for ratio in lengths.ratios[size, : lengths.counts[size]]]


def test_lengths_are_kept_in_order() -> None:
    lengths = OutputLengths()
    for num_output in (9, 2, 5):
        lengths.note(num_output, 10)
    assert kept(lengths, 4) == [0.2, 0.5, 0.9]
    assert np.isinf(lengths.ratios[4, 3:]).all()


def test_those_that_were_allowed_less_tell_nothing() -> None:
    lengths = OutputLengths()
    lengths.note(1, 1)
    lengths.note(100, 1000)
    assert [kept(lengths, size) for size in (1, 2, 10, 11)] == [[0.1, 1.0], [0.1], [0.1], []]


def test_the_oldest_are_forgotten() -> None:
    lengths = OutputLengths()
    for num_output in (2, *[8] * lengths.ratios.shape[1]):
        lengths.note(num_output, 10)
    assert set(kept(lengths, 4)) == {0.8}


def test_any_size_has_a_place() -> None:
    lengths = OutputLengths()
    lengths.note(7, 10**12)
    assert lengths.counts[NUM_SIZES - 1] == 1
