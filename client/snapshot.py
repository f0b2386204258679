"""The engine's state at one moment, as `Client.inspect` returns it: what `bros top` draws.

The server's side of these types is `backend/server/snapshot.py`; a contract test passes its JSON through them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from client.errors import ClientError


class ClassCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests of one class in the engine, by state."""

    num_waiting: int
    num_running: int
    num_preempted: int


class StepView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last step. Seconds; `budget_s` is None when no deadline bound it. Tokens and requests are by class."""

    duration_s: float
    predicted_s: float
    budget_s: float | None
    num_tokens: dict[str, int]
    num_requests: dict[str, int]


class KVPoolView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The KV pool.

    Byte i of `head_fill` (base64 in JSON): slots that real-time holds from the left of block i. Byte i of `tail_fill`:
    slots that best-effort holds from its right.
    """

    block_size: int
    head_fill: bytes
    tail_fill: bytes
    num_host_slots: int
    num_host_slots_used: int

    @property
    def num_blocks(self) -> int:
        return len(self.head_fill)


class RequestView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One running or preempted request. Tokens; `slack_s` is the time to its next deadline, negative when late.

    `num_known` counts prompt and output; `num_held` of them have KV slots, `num_on_host` more lie in the host pool.
    """

    request_id: str
    priority_class: Literal["rt", "be"]
    state: Literal["waiting", "running", "preempted"]
    age_s: float
    slack_s: float | None
    num_known: int
    num_output: int
    num_held: int
    num_on_host: int
    num_preemptions: int


class PreemptionView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One loss of KV slots: in that step the victim kept those of `num_kept` of its `num_known` tokens.

    `is_checkpointed`: the rest was copied to the host pool first. `in_favour_of` is the real-time request that grew
    most in the step; None where there was none but the victim.
    """

    step_index: int
    request_id: str
    priority_class: Literal["rt", "be"]
    num_kept: int
    num_known: int
    is_checkpointed: bool
    in_favour_of: str | None


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything at once. `requests` and `preemptions` (newest last) are bounded lists; `total_*` only grow.

    `facts`: lines about the processor, products, memory and speed; empty where the engine is simulated.
    """

    version: int
    policy: str
    requests_by_class: dict[str, ClassCounts]
    latency_error_ratio: float
    total_steps: int
    total_step_tokens: dict[str, int]
    total_preemptions: dict[str, int]
    total_copied_out_tokens: int
    total_copied_in_tokens: int
    total_recomputed_tokens: int
    step: StepView | None
    kv: KVPoolView
    requests: list[RequestView]
    preemptions: list[PreemptionView]
    facts: list[str] = []


def parse_snapshot(text: str) -> Snapshot:
    """Return the snapshot in a server's JSON. Raises ClientError when it is of another version."""
    try:
        return msgspec.json.decode(text, type=Snapshot)
    except msgspec.DecodeError as error:
        raise ClientError(f"the server's snapshot does not fit this client: {error}") from error
