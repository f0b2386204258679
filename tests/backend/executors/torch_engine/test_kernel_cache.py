"""A cached kernel is used again, and only as long as every source it is made of stays the same."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest
from numba import carray, int64
from numba.core.caching import IndexDataCacheFile

from backend.executors.torch_engine import kernel_cache
from backend.executors.torch_engine.kernel_cache import Kernel, compile_kernel, source_stamp

PACKAGE = Path(kernel_cache.__file__).parent


def compiled() -> Kernel:
    def write_seven(data: object) -> None:
        carray(data, (1,), int64)[0] = 7

    return compile_kernel(write_seven)


@pytest.fixture
def numbas_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("numbas_cache")
def test_kernel_is_compiled_anew_only_when_a_source_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled()._cache_hits == 0
    assert compiled()._cache_hits == 1
    monkeypatch.setattr(kernel_cache, "source_stamp", lambda: "another")
    assert compiled()._cache_hits == 0


@pytest.mark.usefixtures("numbas_cache")
@pytest.mark.parametrize("access", ["_load_index", "_save_index", "_load_data", "_save_data"])
def test_no_other_process_touches_the_files_meanwhile(access: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two that compile at once would each write its kernel where the other's index says that its own is."""
    accesses = []

    def locked(files: Any, *arguments: Any) -> Any:
        with open(f"{files._index_path}.lock", "ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        accesses.append(access)
        return plain(files, *arguments)

    plain = getattr(IndexDataCacheFile, access)
    monkeypatch.setattr(IndexDataCacheFile, access, locked)
    assert [compiled()._cache_hits for _ in range(2)] == [0, 1]
    assert accesses


@pytest.mark.parametrize("name", ["lanes.py", "kernels.py", "chunk_kernel.py"])
def test_stamp_follows_the_sources_that_kernels_inline(name: str, tmp_path: Path) -> None:
    for source in PACKAGE.glob("*.py"):
        shutil.copy(source, tmp_path)
    assert source_stamp(tmp_path) == source_stamp()
    with (tmp_path / name).open("a") as file:
        file.write("# changed\n")
    assert source_stamp(tmp_path) != source_stamp()


def test_stamp_covers_every_module_that_a_kernels_module_imports() -> None:
    """Each compiled kernel's module may inline what it imports from this package."""
    prefix = "from backend.executors.torch_engine."
    for name in ("kernels.py", "chunk_kernel.py", "lanes.py"):
        lines = (PACKAGE / name).read_text().splitlines()
        imported = {line.split()[1].rpartition(".")[2] + ".py" for line in lines if line.startswith(prefix)}
        assert imported <= set(kernel_cache.SOURCES)


def test_without_a_folder_to_write_to_a_kernel_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")

    monkeypatch.setattr(kernel_cache, "_KernelCache", refuse)
    assert compiled().address
