"""The store against a slow twin: two lists that are searched from end to end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec.structs import replace

from front.batches.folder import open_folder
from front.batches.objects import NEXT, Batch, Status, StoredFile, new_batch_id, new_file_id
from front.batches.store import Cut, Store, StoreError

OWNERS = st.sampled_from(["me", "you"])
PURPOSES = st.sampled_from(["batch", "batch_output"])
EVERYTHING = Cut(1000, newest_first=False)


def make_file(owner: str = "me", purpose: str = "batch", num_bytes: int = 1) -> StoredFile:
    return StoredFile(id=new_file_id(), owner=owner, purpose=purpose, filename="in", num_bytes=num_bytes, created_s=0)


def make_batch(owner: str = "me", input_id: str = "file-x") -> Batch:
    ids = {"id": new_batch_id(), "input_id": input_id, "output_id": new_file_id(), "errors_id": new_file_id()}
    return Batch(owner=owner, endpoint="/v1/completions", created_s=0, expires_s=1, **ids)


def cut_of(rows: list[StoredFile] | list[Batch], cut: Cut) -> list[StoredFile | Batch] | None:
    """The twin of a list: all rows of an owner and a purpose, of which `cut` keeps some."""
    ordered = list(rows[::-1] if cut.newest_first else rows)
    if cut.after is not None:
        places = [place for place, row in enumerate(ordered) if row.id == cut.after]
        if not places:
            return None
        ordered = ordered[places[0] + 1 :]
    return ordered[: cut.limit]


class StoreAndTwin(RuleBasedStateMachine):
    """Every rule does the same to both."""

    files = Bundle("files")
    batches = Bundle("batches")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "state.sqlite3"
        self.store = Store(self.path)
        self.all_files: list[StoredFile] = []
        self.all_batches: list[Batch] = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(target=files, owner=OWNERS, purpose=PURPOSES, num_bytes=st.integers(0, 9))
    def add_file(self, owner: str, purpose: str, num_bytes: int) -> StoredFile:
        file = make_file(owner, purpose, num_bytes)
        self.store.add_file(file)
        self.all_files.append(file)
        return file

    @rule(file=consumes(files), owner=OWNERS)
    def delete_file(self, file: StoredFile, owner: str) -> None:
        assert self.store.delete_file(owner, file.id) == (owner == file.owner)
        self.all_files = [each for each in self.all_files if each != file or owner != file.owner]

    @rule(target=batches, owner=OWNERS, file=files)
    def add_batch(self, owner: str, file: StoredFile) -> str:
        batch = make_batch(owner, file.id)
        self.store.add_batch(batch)
        self.all_batches.append(batch)
        return batch.id

    @rule(batch_id=batches, status=st.sampled_from(Status), num_files=st.integers(0, 2))
    def move(self, batch_id: str, status: Status, num_files: int) -> None:
        (place,) = (place for place, batch in enumerate(self.all_batches) if batch.id == batch_id)
        now = self.all_batches[place]
        wanted = replace(now, has_output=num_files > 0).moved(status, 5)
        new = [make_file(now.owner, "batch_output") for _ in range(num_files)]
        if status in NEXT[now.status]:
            self.all_batches[place] = wanted
            self.all_files += new
        assert self.store.move(wanted, new) == self.all_batches[place]

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store(self.path)

    @rule(data=st.data(), owner=OWNERS, limit=st.integers(1, 3), newest_first=st.booleans())
    def list_some(self, data: st.DataObject, owner: str, limit: int, newest_first: bool) -> None:
        ids = [None, "file-none", *(file.id for file in self.all_files)]
        cut = Cut(limit, data.draw(st.sampled_from(ids)), newest_first)
        assert self.store.files(owner, cut) == cut_of(self.files_of(owner), cut)
        own = [file for file in self.files_of(owner) if file.purpose == "batch"]
        if cut.after is None or cut.after in [file.id for file in own]:
            assert self.store.files(owner, cut, "batch") == cut_of(own, cut)
        cut = Cut(limit, data.draw(st.sampled_from([None, "x", *(batch.id for batch in self.all_batches)])))
        assert self.store.batches(owner, cut) == cut_of(self.batches_of(owner), cut)

    @invariant()
    def both_know_the_same(self) -> None:
        for owner in ("me", "you"):
            assert self.store.files(owner, EVERYTHING) == self.files_of(owner)
            assert self.store.batches(owner, EVERYTHING) == self.batches_of(owner)
            assert self.store.num_files(owner) == len(self.files_of(owner))
            assert self.store.stored_bytes(owner) == sum(file.num_bytes for file in self.files_of(owner))
        open_ones = [batch for batch in self.all_batches if NEXT[batch.status]]
        assert self.store.unfinished() == open_ones
        assert self.store.stored_bytes() == sum(file.num_bytes for file in self.all_files)
        written = {file_id for batch in open_ones for file_id in (batch.output_id, batch.errors_id)}
        assert self.store.known_ids() == {file.id for file in self.all_files} | written
        for file in self.all_files:
            assert self.store.is_in_use(file.id) == (file.id in [batch.input_id for batch in open_ones])

    def files_of(self, owner: str) -> list[StoredFile]:
        return [file for file in self.all_files if file.owner == owner]

    def batches_of(self, owner: str) -> list[Batch]:
        return [batch for batch in self.all_batches if batch.owner == owner]


TestStore = StoreAndTwin.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_what_is_of_another_owner_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    file, batch = make_file(), make_batch()
    store.add_file(file)
    store.add_batch(batch)
    assert (store.file("you", file.id), store.batch("you", batch.id)) == (None, None)
    assert (store.file("me", file.id), store.batch("me", batch.id)) == (file, batch)
    store.close()


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    batch, file = make_batch(), make_file()
    store.add_batch(batch)
    store.add_file(file)
    with pytest.raises(Exception, match="UNIQUE"):
        store.move(batch.moved(Status.IN_PROGRESS, 1), [make_file(), file])
    assert store.batch("me", batch.id) == batch
    assert store.files("me", EVERYTHING) == [file]
    store.close()


def test_a_database_of_another_version_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store._database.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(StoreError, match="version 99"):
        Store(tmp_path / "s")


def test_one_process_owns_a_folder(tmp_path: Path) -> None:
    with open_folder(tmp_path), pytest.raises(StoreError, match="another process"), open_folder(tmp_path):
        pass


def test_opening_deletes_what_nobody_knows_and_nothing_else(tmp_path: Path) -> None:
    with open_folder(tmp_path) as (folder, store):
        file, batch = make_file(), make_batch()
        store.add_file(file)
        store.add_batch(batch)
        for name in (file.id, batch.output_id, batch.errors_id, new_file_id()):
            folder.content(name).touch()
        (folder.parts / uuid4().hex).touch()
        for path in (folder.files / "thesis.odt", folder.parts / "diary", folder.files / "file-of-mine"):
            path.touch()
    with open_folder(tmp_path) as (folder, _):
        kept = {path.name for path in folder.files.iterdir()}
        assert kept == {file.id, batch.output_id, batch.errors_id, "thesis.odt", "file-of-mine"}
        assert [path.name for path in folder.parts.iterdir()] == ["diary"]


def test_the_oldest_batches_that_have_ended_are_forgotten(tmp_path: Path) -> None:
    with open_folder(tmp_path) as (_, store):
        batches = [replace(make_batch("one"), id=f"batch_{n}") for n in range(6)]
        for batch in [*batches, replace(make_batch("other"), id="batch_other")]:
            store.add_batch(batch)
        for batch in batches[1:4]:
            store.move(batch.moved(Status.FAILED, 1))
        store.forget_ended("one", num_kept=3)
        kept = [batch.id for batch in store.batches("one", Cut(10)) or ()]
        assert kept == ["batch_5", "batch_4", "batch_3", "batch_0"]
        assert [batch.id for batch in store.batches("other", Cut(10)) or ()] == ["batch_other"]


def test_a_database_without_totals_gets_them(tmp_path: Path) -> None:
    """As those of releases before 1,000,000 files were thought of have none."""
    store = Store(tmp_path / "state")
    files = [make_file("me", "batch", 5) for _ in range(3)]
    for file in files:
        store.add_file(file)
    for thing in ("TABLE totals", "TRIGGER file_came", "TRIGGER file_went"):
        store._database.execute(f"DROP {thing}")
    store.close()
    store = Store(tmp_path / "state")
    store.delete_file("me", files[0].id)
    assert (store.num_files("me"), store.stored_bytes()) == (2, 10)
    store.close()
