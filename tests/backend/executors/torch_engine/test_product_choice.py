"""Formats: which exist for a matrix on a processor, which is chosen for how many rows, and that the choice is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backend.executors.torch_engine import product_choice
from backend.executors.torch_engine.linear import LaidOutProduct
from backend.executors.torch_engine.processor import Processor, detect
from backend.executors.torch_engine.product_choice import (
    ROWS,
    KeptChoices,
    ProductChoices,
    Times,
    default_choice,
    fastest,
    in_words,
    time_products,
)
from backend.executors.torch_engine.products import Format, Matrix, Target, formats_for
from backend.executors.torch_engine.settings import WeightFormat
from backend.executors.torch_engine.weights import EightBit, Quantised

CPU = torch.device("cpu")


def make_processor(isa: str = "AVX2") -> Processor:
    """A processor that has `isa` and each weaker instruction set."""
    ladder = ["generic", "AVX2", "AVX-512", "AVX-512 BF16", "AMX"]
    level = ladder.index(isa)
    return Processor("forged", level >= 1, level >= 2, level >= 3, level >= 4, has_onednn=True)


def make_target(
    isa: str = "AVX2", dtype: torch.dtype = torch.bfloat16, weights: WeightFormat = WeightFormat.AUTO
) -> Target:
    return Target(make_processor(isa), CPU, dtype, has_compiled_kernels=True, weights=weights)


def make_matrix(num_outputs: int = 32, num_columns: int = 64, bits: int | None = 4) -> Matrix:
    torch.manual_seed(0)
    scales = torch.rand((num_outputs, num_columns // 32)).half().float() * 0.02
    codes: Quantised | EightBit | None = None
    if bits == 4:
        drawn = torch.randint(0, 16, (num_outputs, num_columns), dtype=torch.uint8)
        codes = Quantised(drawn, scales, -8 * scales)
    elif bits == 8:
        codes = EightBit(torch.randint(-128, 128, (num_outputs, num_columns), dtype=torch.int8), scales)
    weight = torch.randn((num_outputs, num_columns)) if codes is None else codes.dense()
    return Matrix("qkv", (num_outputs, num_columns), lambda: weight, codes)


def names(matrix: Matrix, target: Target) -> list[str]:
    return [each.name for each in formats_for(matrix, target)]


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        ("generic", ["float32"]),
        ("AVX2", ["4-bit", "float32"]),
        ("AVX-512", ["4-bit", "float32"]),
        ("AVX-512 BF16", ["4-bit", "bf16"]),
        ("AMX", ["4-bit", "bf16"]),
    ],
)
def test_bf16_is_multiplied_only_by_processors_that_have_the_instruction(isa: str, expected: list[str]) -> None:
    assert names(make_matrix(), make_target(isa)) == expected


def test_float32_has_one_format_so_that_no_row_depends_on_the_others() -> None:
    assert names(make_matrix(), make_target("AMX", torch.float32)) == ["float32"]


def test_codes_of_eight_bits_and_of_none_have_their_formats() -> None:
    assert names(make_matrix(bits=8), make_target()) == ["8-bit", "float32"]
    assert names(make_matrix(bits=None), make_target()) == ["float32"]


def test_a_matrix_that_is_no_whole_number_of_tiles_has_no_coded_format() -> None:
    assert names(make_matrix(num_outputs=24), make_target()) == ["float32"]


@pytest.mark.parametrize(
    ("weights", "isa", "expected"),
    [
        (WeightFormat.DENSE, "AVX-512 BF16", ["bf16"]),
        (WeightFormat.DENSE, "AVX2", ["float32"]),
        (WeightFormat.BF16, "AVX-512", ["bf16"]),
        (WeightFormat.FLOAT32, "AVX-512 BF16", ["float32"]),
    ],
)
def test_a_pinned_format_is_the_only_one(weights: WeightFormat, isa: str, expected: list[str]) -> None:
    assert names(make_matrix(), make_target(isa, weights=weights)) == expected


FORMATS = formats_for(make_matrix(), make_target())


def make_times(coded: list[float], dense: list[float]) -> Times:
    return {"4-bit": dict(zip(ROWS, coded, strict=True)), "float32": dict(zip(ROWS, dense, strict=True))}


@pytest.mark.parametrize(
    ("coded", "dense", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], (("4-bit", 32), ("float32", None))),
        ([1, 1, 1, 3, 3, 3], [2, 2, 2, 2, 2, 2], (("4-bit", 4), ("float32", None))),
        ([3, 3, 3, 3, 3, 3], [2, 2, 2, 2, 2, 2], (("float32", None),)),
        ([3, 1, 1, 3, 3, 3], [2, 2, 2, 2, 2, 2], (("float32", 1), ("4-bit", 4), ("float32", None))),
    ],
)
def test_each_range_of_rows_gets_its_fastest_format(
    coded: list[float], dense: list[float], expected: tuple[tuple[str, int | None], ...]
) -> None:
    assert fastest(make_times(coded, dense), FORMATS) == expected


def test_a_choice_reads_as_one_would_say_it() -> None:
    assert in_words((("4-bit", 16), ("bf16", None))) == "4-bit to 16 rows, then bf16"
    assert in_words(default_choice(FORMATS, limited_rows=0)) == "float32"


def test_every_format_is_timed_for_the_rows_it_takes_and_keeps_its_least_time() -> None:
    now_s, seen = [0.0], []

    def product(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        now_s[0] += len(x) / len(seen)
        return x

    small = Format("small", lambda *_: True, lambda *_: product, max_rows=2)
    large = Format("large", lambda *_: True, lambda *_: product)
    times = time_products({"small": product, "large": product}, [small, large], 8, torch.float32, lambda: now_s[0])
    assert sorted(times["small"]) == [1, 2]
    assert sorted(times["large"]) == list(ROWS)
    assert times["small"][1] == pytest.approx(1 / 9), "the fifth and last try is the ninth call of both"


def choices_in(folder: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]) -> ProductChoices:
    """Choices that measure even the smallest matrix; each measurement is noted."""

    def time(*_arguments: object) -> Times:
        measured.append("once")
        return make_times([1, 1, 1, 3, 3, 3], [2] * 6)

    monkeypatch.setattr(product_choice, "_MIN_BYTES", 0)
    monkeypatch.setattr(product_choice, "time_products", time)
    return ProductChoices(make_target(), folder)


needs_avx2 = pytest.mark.skipif(not detect().has_avx2, reason="coded products are compiled for AVX2 or more")


@needs_avx2
def test_what_was_measured_is_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    for _ in range(2):
        choices = choices_in(tmp_path, monkeypatch, measured)
        choices.linear(make_matrix())
        linear = choices.linear(make_matrix())
        assert [each.max_rows for each in linear.ranges] == [4, None]
        assert isinstance(linear.ranges[-1].product, LaidOutProduct)
        assert choices.describe() == "qkv: 4-bit to 4 rows, then float32"
    assert measured == ["once"]


def test_another_machine_measures_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "products.json"
    KeptChoices(path, "one").put("qkv", (("4-bit", 8), ("bf16", None)))
    assert KeptChoices(path, "another").get("qkv") is None
    KeptChoices(path, "another").put("qkv", (("bf16", None),))
    assert KeptChoices(path, "one").get("qkv") == (("4-bit", 8), ("bf16", None))


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"forged": 3}'])
def test_a_damaged_file_is_measured_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "products.json"
    path.write_text(content)
    kept = KeptChoices(path, "forged")
    assert kept.get("qkv") is None
    kept.put("qkv", (("bf16", None),))
    assert json.loads(path.read_text())["forged"] == {"qkv": [["bf16", None]]}


def test_choices_of_another_user_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "products.json"
    KeptChoices(path, "forged").put("qkv", (("bf16", None),))
    monkeypatch.setattr(product_choice, "is_foreign", lambda it: it == path)
    assert KeptChoices(path, "forged").get("qkv") is None


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    KeptChoices(tmp_path / "file" / "products.json", "forged").put("qkv", (("bf16", None),))
    assert "not kept" in caplog.text


@needs_avx2
def test_pinned_rows_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_choice, "_MIN_BYTES", 0)
    linear = ProductChoices(make_target(), tmp_path, pinned_rows=2).linear(make_matrix())
    assert [each.max_rows for each in linear.ranges] == [2, None]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [4, 8])
def test_all_formats_of_a_matrix_multiply_alike(bits: int) -> None:
    """Codes are exact; a dense bf16 weight and a bf16 result are rounded once each, by 2^-9 at most."""
    matrix, x = make_matrix(bits=bits), torch.randn((5, 64)).bfloat16()
    expected = x.float() @ matrix.dense().T
    bound = 2**-9 * (x.float().abs() @ matrix.dense().abs().T + expected.abs()) + 1e-6
    for weights in (WeightFormat.AUTO, WeightFormat.BF16, WeightFormat.FLOAT32):
        if weights is WeightFormat.BF16 and not detect().has_avx512:
            continue  # oneDNN has no such product
        target = Target(detect(), CPU, torch.bfloat16, has_compiled_kernels=True, weights=weights)
        for each in formats_for(matrix, target):
            assert ((each.make(matrix, target)(x).float() - expected).abs() <= bound).all(), each.name
