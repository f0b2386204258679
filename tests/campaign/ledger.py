"""The ledger: every request that was sent, how it ended, and whether that is a fault."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from client.wire import ERROR_CODES
from tests.campaign.request_paths import End, Reply
from tests.campaign.tokens import NameSearch

_CODE = re.compile(rf"\b({'|'.join(ERROR_CODES)}): ")
_OURS_TO_MEND = {"INTERNAL", "EXECUTOR_FAILED"}  # never a client's fault
_OF_DEATH = {"ENGINE_DOWN"}  # right where an engine was killed, and only there
_STATUS_FAULTS = range(500, 600)
_TRITON_PARSES = ("failed to parse the request JSON", "Unable to parse ")  # which 2.51 says with status 500
_UNIMPLEMENTED = 501
_PER_RESPONSE = "class result not available"  # which 2.51 says for each response of a stream that asks for classes
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_KIND_CHARS = 110


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that must not be: its kind in words, and what shows it."""

    kind: str
    example: str


@dataclass(slots=True, eq=False)
class Entry:
    """One request. `num_prompt` and `max_tokens` in tokens; `reply` is None while it is open."""

    client_id: str
    request_path: str
    priority_class: str
    num_prompt: int
    max_tokens: int
    reply: Reply | None = None


@dataclass(slots=True)
class Ledger:
    """The requests of one phase. `check` returns their faults."""

    names: NameSearch
    entries: list[Entry] = field(default_factory=list)

    def open(self, entry: Entry) -> Entry:
        """Note a request that is about to be sent."""
        self.entries.append(entry)
        return entry

    def ends(self) -> dict[str, int]:
        """Return how many ended how; refusals by their code."""
        return dict(sorted(Counter(map(_end_of, self.entries)).items()))

    def check(self, allowed: Container[str] = ()) -> list[Fault]:
        """Return the faults; `allowed` names ends (of `ends`) that a phase makes itself, like `broken`."""
        fine = {End.ANSWERED.value, End.LEFT.value}
        faults = [
            _fault_of_end(entry) for entry in self.entries if (end := _end_of(entry)) not in fine and end not in allowed
        ]
        return faults + [fault for entry in self.entries if (fault := self._fault_of_tokens(entry)) is not None]

    def _fault_of_tokens(self, entry: Entry) -> Fault | None:
        reply = entry.reply
        if reply is None or not reply.token_ids:
            return None
        if reply.end is End.ANSWERED and len(reply.token_ids) != entry.max_tokens:
            return Fault(
                f"tokens lost or repeated over {entry.request_path}", f"{len(reply.token_ids)} tokens: {entry}"
            )
        if self.names.find(entry.client_id, entry.num_prompt, reply.token_ids) is None:
            return Fault(f"tokens of another request or order over {entry.request_path}", str(entry))
        return None


def fault_of(reply: Reply) -> str | None:
    """Return the fault of a reply, for any request of a client; None for an answer or a typed error."""
    if reply.end in (End.HUNG, End.BROKEN):
        return f"{reply.end.value}: {reply.words}" if reply.words else reply.end.value
    code = code_of(reply.words)
    if reply.end is End.REFUSED and (code in _OURS_TO_MEND | _OF_DEATH or "Traceback" in reply.words):
        return f"refused: {reply.words}"
    is_parse_error = reply.words.startswith(_TRITON_PARSES)
    if reply.status in _STATUS_FAULTS and reply.status != _UNIMPLEMENTED and not is_parse_error:
        return f"status {reply.status}: {reply.words}"
    if reply.end is not End.LEFT and reply.num_ends > 1 and _PER_RESPONSE not in reply.words:
        return f"ended {reply.num_ends} times: {reply.words}"
    return None


def code_of(words: str) -> str | None:
    """Return the error code in a message; None in Triton's own."""
    found = _CODE.search(words)
    return found[1] if found else None


def kind_of(words: str) -> str:
    """Return a fault's words without its numbers, so that equal faults are counted together."""
    return _NUMBER.sub("N", " ".join(words.split()))[:_KIND_CHARS]


def group(faults: list[Fault]) -> list[dict[str, Any]]:
    """Return the faults by kind, the most frequent first, with one example each."""
    counts = Counter(fault.kind for fault in faults)
    examples = {fault.kind: fault.example for fault in reversed(faults)}
    return [{"kind": kind, "count": count, "example": examples[kind][:2000]} for kind, count in counts.most_common()]


def _end_of(entry: Entry) -> str:
    reply = entry.reply
    if reply is None:
        return "open"
    if reply.end is not End.REFUSED:
        return reply.end.value
    return (code_of(reply.words) or "refused by Triton").lower()


def _fault_of_end(entry: Entry) -> Fault:
    if entry.reply is None:
        return Fault("accepted, and never ended", str(entry))
    words = f"{entry.request_path}: a good request was {entry.reply.end.value}: {entry.reply.words}"
    return Fault(kind_of(words), str(entry))
