"""Bounds of files and batches. Frozen; tests make their own."""

from __future__ import annotations

from dataclasses import dataclass

from front.engine import MAX_OPEN_LINES

WINDOW = "24h"  # the only completion_window that OpenAI's API has
WINDOW_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Bounds of one process.

    max_file_bytes        of one file; OpenAI's own bound
    max_line_bytes        of one line of an input
    max_lines             of one input; OpenAI's own bound
    max_stored_bytes      of all files, and of the answers that batches are writing
    max_own_bytes         of those of one key: others have room left
    max_uploads           at once; a client with two fewer then ends one of the largest client
    max_own_uploads       of one client at once: a key, or without keys an address
    max_files             of one key at which it may add no file and begin no batch, which would make two
    max_batches           of one key that are kept, its newest ones; those that have not ended stay
    max_unfinished        batches of one key that have not ended
    max_unfinished_in_all batches of all keys that have not ended: each holds three files open
    max_open_requests     of all batches at the engine at once; batches take turns
    upload_idle_s         for the next piece of an upload to come
    upload_s              for the whole upload
    min_upload_bytes_per_s  of an upload, on average, once `upload_idle_s` are over
    first_wait_s          before a request that the engine lost is sent again; doubles
    disk_wait_s           before a batch is tried again that the disk, or the room of its key, has stopped
    room_check_s          between two looks at the room of its key, while a batch runs
    """

    max_file_bytes: int = 200_000_000
    max_line_bytes: int = 1_048_576
    max_lines: int = 50_000
    max_stored_bytes: int = 20_000_000_000
    max_own_bytes: int = 15_000_000_000
    max_uploads: int = 16
    max_own_uploads: int = 4
    max_files: int = 10_000
    max_batches: int = 10_000
    max_unfinished: int = 16
    max_unfinished_in_all: int = 64
    max_open_requests: int = MAX_OPEN_LINES
    upload_idle_s: float = 60.0
    upload_s: float = 3600.0
    min_upload_bytes_per_s: float = 8192.0
    first_wait_s: float = 0.5
    disk_wait_s: float = 10.0
    room_check_s: float = 1.0
