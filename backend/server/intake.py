"""The engine's door: a checked `Generation` becomes a `Request` with token ids, SLOs and times.

Only the engine process can check three things: that messages fit the chat template, the prompt the model, and its token
ids the model's vocabulary. That happens here. Called from several threads; holds no state.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.config import ServiceSettings
from backend.core.errors import InvalidRequestError, RequestTooLargeError
from backend.core.request import Grammar, PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.text.messages import parse_messages, parse_tools
from backend.wire.protocol import Generation, Submit

_MIN_REFUSED_BYTES = 65_536  # tokenised in less than a tenth of a second
_MAX_CHAR_BYTES = 4  # UTF-8


class PromptTokenizer(Protocol):
    """The part of a tokenizer that serving needs; `backend.text.tokenizer.Tokenizer` satisfies it."""

    eos_token_ids: frozenset[int]
    vocab_size: int  # above every id it knows
    max_token_bytes: int  # of a prompt's text that one token can stand for
    strips_first_space: bool

    def encode(self, text: str) -> list[int]: ...
    def render_chat(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()
    ) -> str: ...
    def encode_chat_text(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...


def _needs_no_check(_schema: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an executor can do beyond drawing tokens; the rest is refused by its name.

    compile_schema: makes the grammar of a request from a JSON schema, or None where the executor does that itself.
    is_checked: whether a schema needs no trial in another process.
    has_log_probs: it tells the log-probability of the token drawn. has_top_log_probs: those of the likeliest, too.
    """

    executor: str
    compile_schema: Callable[[str, PriorityClass], Grammar | None] | None = None
    is_checked: Callable[[str], bool] = _needs_no_check
    has_log_probs: bool = False
    has_top_log_probs: bool = False

    def grammar(self, json_schema: str, priority_class: PriorityClass) -> Grammar | None:
        """Return the grammar of a request with a schema. Raises InvalidRequestError."""
        if self.compile_schema is None:
            raise InvalidRequestError(f"json_schema: executor {self.executor!r} follows none")
        return self.compile_schema(json_schema, priority_class)


@dataclass(frozen=True, slots=True)
class Intake:
    """Makes requests.

    max_seq_len: the longest prompt and output together, in tokens. vocab_size: ids that the model knows, from 0 on.
    """

    tokenizer: PromptTokenizer
    service: ServiceSettings
    max_seq_len: int
    vocab_size: int
    abilities: Abilities

    def is_checked(self, json_schema: str) -> bool:
        """Return whether a schema needs no trial that may take a second."""
        return self.abilities.is_checked(json_schema)

    def check_length(self, generation: Generation, request_id: RequestId) -> None:
        """Raise RequestTooLargeError for a prompt that is too long whatever it says: it need not be tokenised."""
        if generation.token_ids is not None:
            self._check_num_tokens(len(generation.token_ids), request_id)
        elif generation.text is not None:
            self._check_num_bytes(generation.text, request_id)

    def request(self, submit: Submit, request_id: RequestId) -> Request:
        """Return the engine's request. Raises InvalidRequestError, RequestTooLargeError."""
        generation = submit.generation
        token_ids = self._token_ids(generation, request_id)
        self._check_vocabulary("stop_token_ids", generation.sampling.stop_token_ids)
        priority_class = PriorityClass(generation.priority_class)
        is_rt = priority_class is PriorityClass.REAL_TIME
        deadline_s = generation.deadline_s
        schema = generation.sampling.json_schema
        if generation.sampling.num_top_log_probs and not self.abilities.has_top_log_probs:
            raise InvalidRequestError(f"num_top_log_probs: executor {self.abilities.executor!r} tells none")
        if generation.wants_log_probs and not self.abilities.has_log_probs:
            raise InvalidRequestError(f"return_log_probs: executor {self.abilities.executor!r} tells none")
        return Request(
            request_id=request_id,
            priority_class=priority_class,
            prompt_token_ids=token_ids,
            sampling=self._sampling(generation, max_default_tokens=self.max_seq_len - len(token_ids)),
            arrival_s=submit.arrival_s,
            slo=self._slo(generation) if is_rt else None,
            deadline_s=None if is_rt or deadline_s is None else submit.arrival_s + deadline_s,
            cache_salt=generation.cache_salt,
            grammar=None if schema is None else self.abilities.grammar(schema, priority_class),
        )

    def prompt_text(self, generation: Generation, request: Request) -> str:
        """Return the prompt as text, for a response that repeats it."""
        return generation.text if generation.text is not None else self.tokenizer.decode(request.prompt_token_ids)

    def _token_ids(self, generation: Generation, request_id: RequestId) -> tuple[int, ...]:
        if generation.text is not None:
            name, token_ids = "text_input", tuple(self.tokenizer.encode(generation.text))
        elif generation.messages is not None:
            tools = () if generation.tools is None else parse_tools(generation.tools)
            name, text = "messages", self.tokenizer.render_chat(parse_messages(generation.messages), tools)
            self._check_num_bytes(text, request_id)
            token_ids = tuple(self.tokenizer.encode_chat_text(text))
        else:
            name, token_ids = "input_ids", generation.token_ids or ()
        if not token_ids:
            raise InvalidRequestError(f"request {request_id!r}: the prompt has no tokens")
        self._check_num_tokens(len(token_ids), request_id)
        self._check_vocabulary(name, token_ids)
        return token_ids

    def _check_num_bytes(self, text: str, request_id: RequestId) -> None:
        """Short texts are counted in tokens, which says more."""
        longest = max(_MIN_REFUSED_BYTES, self.max_seq_len * self.tokenizer.max_token_bytes)
        if len(text) > longest // _MAX_CHAR_BYTES and (num_bytes := len(text.encode())) > longest:
            raise RequestTooLargeError(
                f"request {request_id!r}: prompt of {num_bytes} bytes exceeds {longest}, the most that max_seq_len "
                f"{self.max_seq_len} tokens of this model can say"
            )

    def _check_num_tokens(self, num_tokens: int, request_id: RequestId) -> None:
        if num_tokens >= self.max_seq_len:
            raise RequestTooLargeError(
                f"request {request_id!r}: prompt of {num_tokens} tokens exceeds max_seq_len {self.max_seq_len}"
            )

    def _check_vocabulary(self, name: str, token_ids: Sequence[int]) -> None:
        """A tokenizer may know ids that the model has no row for: its own, or those a client puts in a text."""
        if (largest := max(token_ids, default=0)) >= self.vocab_size:
            raise InvalidRequestError(f"{name}: {largest} is no token id; the vocabulary has {self.vocab_size}")

    def _sampling(self, generation: Generation, max_default_tokens: int) -> SamplingParams:
        asked = generation.sampling
        default_tokens = min(self.service.default_max_tokens, max_default_tokens)
        if asked.max_tokens is None and asked.min_tokens > default_tokens:
            words = f"min_tokens: {asked.min_tokens} exceeds {default_tokens}, the default of max_tokens here"
            raise InvalidRequestError(words)
        eos = frozenset() if asked.ignore_eos else self.tokenizer.eos_token_ids
        return SamplingParams(
            max_tokens=default_tokens if asked.max_tokens is None else asked.max_tokens,
            min_tokens=asked.min_tokens,
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            stop_token_ids=eos | frozenset(asked.stop_token_ids),
            ignore_eos=asked.ignore_eos,
            wants_log_probs=generation.wants_log_probs,
            num_top_log_probs=asked.num_top_log_probs,
            json_schema=asked.json_schema,
        )

    def _slo(self, generation: Generation) -> Slo:
        default = self.service.default_slo
        return Slo(
            ttft_slo_s=default.ttft_slo_s if generation.ttft_slo_s is None else generation.ttft_slo_s,
            tpot_slo_s=default.tpot_slo_s if generation.tpot_slo_s is None else generation.tpot_slo_s,
            itl_slo_s=default.itl_slo_s if generation.itl_slo_s is None else generation.itl_slo_s,
        )
