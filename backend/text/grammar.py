"""JSON schemas as masks over a model's tokens, by the library llguidance.

    schema ──SchemaCheck, a process of its own──► compiled here, in the caller's thread ──► Grammar, one per request
                                                      └──► SchemaMemory: the next request with this schema gets a copy

All copies add states to one lexer. Most schemas have few states. One that has filled its lexer is compiled for each
request, so that what works alone works beside others.

Some schemas take minutes or gigabytes to compile, and the library cannot be interrupted. So another process compiles
each new one first, and ends if that takes long. The library lets other threads run while it compiles. Limits on its
work bound a mask. Schemas made to be slow took 15 ms at most, and 41 ms where a table of 100,000 states grew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.core.errors import BrosError, InvalidRequestError, OverloadedError, shorten
from backend.core.request import PriorityClass
from backend.text.panics import panics_as_errors
from backend.text.schema_check import SchemaCheck, Trial
from backend.text.schema_memory import Compiled, CompiledBytes, SchemaMemory, Verdict
from backend.wire.json_schema import for_library

if TYPE_CHECKING:
    import llguidance

    from backend.text.tokenizer import Tokenizer

MAX_REASON_CHARS = 300
# Between two tokens of JSON: a line break at most, and its indentation. A model must not fill its answer with spaces.
# No escape \u: it would spell the name of one property as another's, whose value may be anything.
_OPTIONS = {"whitespace_pattern": r"\n? {0,32}", "coerce_one_of": True, "json_allowed_escapes": 'nrbtf\\"'}
_LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_grammar_size": 6_000,  # of 700 optional properties, say
    "max_items_in_row": 4_000,  # more than so large a grammar makes
    "max_lexer_states": 150_000,  # of all copies; a string of 10,000 characters takes some 100,000
    "verbose_errors": False,
}

# Too many states, or expressions. The second is what it says where that comes while it takes a token.
_FULL_LEXER = ("lexer error: too many", "parser stopped in consume_token")
MAX_COMPILED_BYTES = 500_000_000  # of the schemas that one class brought, and that requests still hold
FULL_LEXER_BYTES = 260_000_000  # 86 MB for a pattern, 253 beside names that tell all bytes apart
MAX_OWN_BYTES = 1_000_000_000  # the same of those that no two requests share, each with a full lexer: of four
HUNGRY_BYTES = 200_000  # of states that a token adds; most schemas add none, one with a full lexer to come 400,000
NUM_HUNGRY_TOKENS = 8  # after which a request ends while this process is short of memory
HUNGRY = "its texts or patterns take too many states or expressions to follow"


class Grammars:
    """Compiles schemas for one tokenizer. For any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes a quarter of a second for 50,000 tokens. Raises ImportError where the library is not installed."""
        import llguidance

        self._library = llguidance
        self._tokenizer = _library_tokenizer(llguidance, tokenizer)
        self._limits = llguidance.LLParserLimits(**_LIMITS)  # type: ignore[arg-type]  # a dict of mixed values
        self._checks = {priority_class: SchemaCheck(_LIMITS) for priority_class in PriorityClass}
        self._memory = SchemaMemory()
        self._shared = CompiledBytes()
        self._own = CompiledBytes()  # of those that no two requests share: they leave the others their room

    def grammar(self, schema: str, priority_class: PriorityClass) -> Grammar:
        """Return the grammar of a request.

        Raises InvalidRequestError for a schema that cannot be followed, OverloadedError for one to be compiled while
        those of its class take too much memory.
        """
        verdict = self._memory.find(schema) or self._check(schema, priority_class)
        if verdict.compiled is None:
            raise _refusal(verdict.reason)
        on_full = partial(self._memory.share_no_more, schema, verdict.compiled.num_bytes)
        return Grammar(verdict.compiled, self._tokenizer.vocab_size, on_full, self._memory)

    def is_checked(self, schema: str) -> bool:
        """Return whether no process has to try this schema: it is known to be good, or why it is not."""
        return self._memory.find(schema) is not None

    def close(self) -> None:
        """End the processes that check."""
        for check in self._checks.values():
            check.close()

    def _check(self, schema: str, priority_class: PriorityClass) -> Verdict:
        own_bytes = self._memory.own_bytes(schema)
        held, limit = (self._shared, MAX_COMPILED_BYTES) if own_bytes is None else (self._own, MAX_OWN_BYTES)
        if (num_bytes := held.of(priority_class)) > limit:
            kind = "compiled" if own_bytes is None else "unshared compiled"
            words = f"json_schema: {kind} schemas of class {priority_class.value} take {num_bytes} bytes; the limit for"
            raise OverloadedError(f"{words} a new one is {limit}", retry_after_s=1.0)
        with panics_as_errors("llguidance"):
            verdict = self._try(schema, priority_class, own_bytes)
        if verdict.compiled is not None:
            held.add(verdict.compiled, priority_class)
        self._memory.keep(schema, verdict)
        return verdict

    def _try(self, schema: str, priority_class: PriorityClass, own_bytes: int | None) -> Verdict:
        """Compile a schema: for one request, if `own_bytes` are known from its trial in another process before."""
        try:
            text = for_library(schema)
            grammar = self._library.LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)  # type: ignore[arg-type]  # as above
        except ValueError as error:
            return Verdict(None, str(error) or "refused")
        trial = self._checks[priority_class].try_out(grammar) if own_bytes is None else Trial("", own_bytes)
        if trial.reason:
            return Verdict(None, trial.reason)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            return Verdict(None, matcher.get_error())
        return Verdict(Compiled(matcher, trial.num_bytes, 0 if own_bytes is None else FULL_LEXER_BYTES))


class Grammar:
    """Follows one request's output; see `backend.core.request.Grammar`."""

    def __init__(self, compiled: Compiled, vocab_size: int, on_full: Callable[[], None], memory: SchemaMemory) -> None:
        """on_full: called when the lexer that all copies share is full."""
        self._compiled = compiled  # counted as long as its copy shares it
        self._matcher: llguidance.LLMatcher = compiled.matcher.deep_copy()
        self._vocab_size = vocab_size
        self._on_full = on_full
        self._memory = memory
        self._num_seen = 0  # tokens of the output that it has followed
        self._num_hungry = 0  # of these, those that took memory while there was little

    def allowed(self, output: Sequence[int]) -> NDArray[np.bool_]:
        """Return by token id what may follow `output`; at the end of the grammar, the tokens that end a text."""
        before = self._memory.bytes_in_use() if self._memory.is_short() else None
        with panics_as_errors("llguidance"):
            for token_id in output[self._num_seen :]:
                self._matcher.consume_token(token_id)
            self._compiled.num_followed += len(output) - self._num_seen
            self._num_seen = len(output)
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._failure()
        if before is not None and self._memory.bytes_in_use() - before > HUNGRY_BYTES:
            self._refuse_while_short()
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def _refuse_while_short(self) -> None:
        """Raise OverloadedError where this is not the first token that takes memory."""
        self._num_hungry += 1
        if self._num_hungry >= NUM_HUNGRY_TOKENS:
            words = "json_schema: each token takes memory to follow, of which there is little now"
            raise OverloadedError(words, retry_after_s=1.0)

    def _failure(self) -> BrosError:
        """Return why no mask comes. Where others filled the lexer too, the request may well succeed with its own."""
        compiled, reason = self._compiled, self._matcher.get_error()
        if not any(words in reason for words in _FULL_LEXER):
            return _refusal(reason)
        self._on_full()
        if compiled.num_followed == self._num_seen:
            return _refusal(HUNGRY)
        words = "json_schema: requests with this schema have together filled what it may take; each gets its own now"
        return OverloadedError(words, retry_after_s=0.1)


def _refusal(reason: str) -> InvalidRequestError:
    words = " ".join(reason.partition("<backtrace>")[0].removesuffix("<non-verbose/>").split())
    return InvalidRequestError(f"json_schema: {shorten(words, MAX_REASON_CHARS)}")


def _library_tokenizer(library: Any, tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    vocabulary, ends = _Vocabulary(tokenizer), sorted(tokenizer.eos_token_ids)
    made: llguidance.LLTokenizer = library.LLTokenizer(library.TokenizerWrapper(vocabulary), eos_token=ends)
    vocabulary.tokenize_greedily = made.greedy_tokenize
    return made


class _Vocabulary:
    """Our tokenizer as the library takes one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = tokenizer.vocabulary()
        self.special_token_ids = sorted(tokenizer.special_token_ids)
        self.tokenize_greedily: Callable[[str], list[int]] = lambda _: []
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the tokens of a text that the grammar leaves no choice about, inside an answer.

        Some tokenizers put a space in front of any text, and most read a special token's name as that token. Then the
        text's longest ordinary tokens stand for it.
        """
        words = text if isinstance(text, str) else text.decode()
        token_ids = self._tokenizer.encode_chat_text(words)
        is_exact = b"".join(map(self._tokenizer.token_bytes, token_ids)) == words.encode()
        return token_ids if is_exact else self.tokenize_greedily(words)
