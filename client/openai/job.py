"""A request on its way: its wishes, its class, its answer's name, and the answer itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from client.generation import Chunk, Generation, Options
from client.openai.asked import MAX_LINE_LOG_PROBS, Asked, Endpoint, Json, require_sendable
from client.openai.chat import CHAT
from client.openai.completions import COMPLETIONS
from client.openai.errors import ApiError, not_found
from client.openai.objects import read_object
from client.openai.tiers import Served, best_effort
from client.openai.usage import Tally
from client.wire import MODELS

ENDPOINTS: Mapping[str, Endpoint] = {endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS)}


@dataclass(frozen=True, slots=True)
class Job:
    """One request of an endpoint."""

    endpoint: Endpoint
    asked: Asked
    served: Served
    request_id: str
    created_s: int

    def head(self, name: str) -> Json:
        """Return what stands at the top of an answer or of a piece of one."""
        return {
            "id": self.request_id,
            "object": name,
            "created": self.created_s,
            "model": self.asked.model,
            "service_tier": self.served.tier,
        }

    def options(self, choice: int) -> Options:
        """Return the engine's options for a choice: its own id, and a seed of its own."""
        asked = self.asked
        its_id = self.request_id if asked.num_choices == 1 else f"{self.request_id}-{choice}"
        options = Options(**asked.options, priority_class=self.served.priority_class, request_id=its_id)
        if asked.seed is not None:
            options["seed"] = (asked.seed + choice % asked.n) % 2**64
        return options

    def answer(self, generations: Sequence[Generation]) -> Json:
        """Return the whole answer; `generations` are those of the choices, in order."""
        tally = Tally(self.asked)
        for choice, generation in enumerate(generations):
            tally.add(choice, generation)
        choices = [self.endpoint.choice(self.asked, *each) for each in enumerate(generations)]
        return self.head(self.endpoint.whole_name) | {"choices": choices, "usage": tally.usage}


def make_job(endpoint: Endpoint, asked: Asked, served: Served) -> Job:
    """Give a request its name and its time."""
    return Job(endpoint, asked, served, endpoint.id_prefix + uuid4().hex, int(time.time()))


def batch_job(
    url: str,
    text: bytes,
    left_ms: float | None = None,
    max_tokens: int | None = None,
    *,
    takes_any_model: bool = False,
) -> Job:
    """Return the request that a line of a batch asks for: its body `text`, sent to the path `url`. Raises ApiError.

    It is best-effort, and due in `left_ms`, or when it says itself where that is sooner. `max_tokens` is for a body
    that names none. takes_any_model: a name that is not ours has no effect, but stands in the answer.
    """
    if (endpoint := ENDPOINTS.get(url)) is None:
        raise not_found("endpoint", url, param="url")
    body = _with_limits(read_object(text), left_ms, max_tokens)
    foreign = _taken_foreign_model(body) if takes_any_model else None
    asked = endpoint.parse(body)
    require_sendable(asked, len(text), MAX_LINE_LOG_PROBS)
    if foreign is not None:
        asked = replace(asked, model=foreign)
    if asked.is_streamed:
        raise ApiError("stream: not in a batch", param="stream")
    return make_job(endpoint, asked, best_effort(asked.tier, asked.model))


def require_end(part: Chunk | Generation) -> None:
    """Raise ApiError where the server broke an answer off: OpenAI's API knows no such finish_reason."""
    if part.finish_reason == "cancelled":
        raise ApiError("the server cancelled the request", status=408, kind="timeout_error", code="request_cancelled")


def _taken_foreign_model(body: Json) -> str | None:
    """Take the name of a model that is not ours out of `body`, and return it."""
    model = body.get("model")
    if not isinstance(model, str) or model in MODELS:
        return None
    del body["model"]
    return model


def _with_limits(body: Json, left_ms: float | None, max_tokens: int | None) -> Json:
    asked_ms = body.get("deadline_ms")
    is_number = isinstance(asked_ms, int | float) and not isinstance(asked_ms, bool)
    if left_ms is not None and (asked_ms is None or (is_number and asked_ms > left_ms)):
        body["deadline_ms"] = left_ms
    if max_tokens is not None and body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = max_tokens
    return body
