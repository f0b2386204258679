"""Files and batches as they are kept, and as OpenAI's API shows them."""

from __future__ import annotations

from enum import Enum
from typing import Any
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from front.batches.settings import WINDOW

Json = dict[str, Any]
INPUT = "batch"  # the purpose of a file that a batch reads
OUTPUT = "batch_output"  # of one that it has written


class Status(Enum):
    """The states of a batch.

    validating ─► in_progress ─► finalizing ─► completed
        │    │        │     └─────────────────► expired        (its 24 hours are over; what it has, it keeps)
        │    └────────┴───► cancelling ───────► cancelled
        └─► failed                                              (its input cannot be run, or its files are damaged)
    """

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return not NEXT[self]


_STOPPED = {Status.CANCELLING, Status.FAILED}
NEXT: dict[Status, set[Status]] = {
    Status.VALIDATING: {Status.IN_PROGRESS, *_STOPPED},
    Status.IN_PROGRESS: {Status.FINALIZING, Status.EXPIRED, *_STOPPED},
    Status.FINALIZING: {Status.COMPLETED, Status.FAILED},
    Status.CANCELLING: {Status.CANCELLED, Status.FAILED},
    Status.COMPLETED: set(),
    Status.FAILED: set(),
    Status.EXPIRED: set(),
    Status.CANCELLED: set(),
}


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `owner` names the key that brought it; `purpose` is `batch` or `batch_output`."""

    id: str
    owner: str
    purpose: str
    filename: str
    num_bytes: int
    created_s: int

    @property
    def shown(self) -> Json:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_s,
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class InputError(msgspec.Struct, frozen=True, kw_only=True):
    """An error in an input; `line` counts from 1, as OpenAI does."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch: all, with an answer, without one for good."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch. The ids of its two files are given at its birth; a client sees them once they are whole.

    `times_s` holds when each state began.
    """

    id: str
    owner: str
    endpoint: str
    input_id: str
    output_id: str
    errors_id: str
    created_s: int
    expires_s: int
    status: Status = Status.VALIDATING
    times_s: dict[Status, int] = {}
    metadata: dict[str, str] | None = None
    counts: Counts = Counts()
    errors: list[InputError] = []
    has_output: bool = False
    has_errors: bool = False

    def moved(self, status: Status, now_s: int) -> Batch:
        """Return the batch as it stands after a change of status."""
        return replace(self, status=status, times_s={**self.times_s, status: now_s})

    @property
    def shown(self) -> Json:
        times = {f"{status.value}_at": self.times_s.get(status) for status in Status if status != Status.VALIDATING}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_id,
            "completion_window": WINDOW,
            "status": self.status.value,
            "output_file_id": self.output_id if self.has_output else None,
            "error_file_id": self.errors_id if self.has_errors else None,
            "created_at": self.created_s,
            "expires_at": self.expires_s,
            **times,
            "request_counts": self.counts,
            "metadata": self.metadata,
        }


def new_file_id() -> str:
    """Return an id that no file has had."""
    return f"file-{uuid4().hex}"


def new_batch_id() -> str:
    """Return an id that no batch has had."""
    return f"batch_{uuid4().hex}"
