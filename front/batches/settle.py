"""Makes the two files of a batch what a client gets to see. May be done again, after a death in the midst of it."""

from __future__ import annotations

from msgspec.structs import replace

from client.batch.lines import lost, result_line
from client.batch.results import Results, open_results
from client.batch.run import pending_lines
from front.batches.folder import Folder
from front.batches.objects import OUTPUT, Batch, Counts, Status, StoredFile

_EXPIRED = lost("batch_expired", "the request could not be executed before the completion window expired")


def settle(folder: Folder, batch: Batch, status: Status, now_s: int) -> tuple[Batch, list[StoredFile]]:
    """Return the batch with its counts and its files, which lie on the disk then, whole. Blocks.

    Lines that a batch was too late for go to its error file; those of a cancelled one go nowhere.
    """
    with open_results(folder.content(batch.output_id), folder.content(batch.errors_id)) as results:
        if status is Status.EXPIRED:
            _note_expired(folder, batch, results)
        counts = results_counts(results, batch.counts.total)
    files = [
        *_kept(folder, batch, batch.output_id, "output", now_s),
        *_kept(folder, batch, batch.errors_id, "errors", now_s),
    ]
    folder.sync()
    ids = {file.id for file in files}
    return replace(batch, counts=counts, has_output=batch.output_id in ids, has_errors=batch.errors_id in ids), files


def results_counts(results: Results, num_lines: int) -> Counts:
    """Return how far the results of a batch of `num_lines` are."""
    return Counts(num_lines, results.num_done - results.num_failed, results.num_failed)


def _note_expired(folder: Folder, batch: Batch, results: Results) -> None:
    for line in filter(None, pending_lines(folder.content(batch.input_id), results, {}, lambda _: None)):
        results.append(line.index, line.crc32, result_line(line, _EXPIRED), is_failure=True)


def _kept(folder: Folder, batch: Batch, file_id: str, what: str, now_s: int) -> list[StoredFile]:
    """Return the file, or, where it is empty, delete it and return none."""
    path = folder.content(file_id)
    if (num_bytes := path.stat().st_size) == 0:
        path.unlink()
        return []
    name = f"{batch.id}_{what}.jsonl"
    return [
        StoredFile(id=file_id, owner=batch.owner, purpose=OUTPUT, filename=name, num_bytes=num_bytes, created_s=now_s)
    ]
