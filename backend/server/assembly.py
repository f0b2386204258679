"""Puts an engine together from its configuration: tokenizer, executor, scheduler, clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from backend.config import EngineConfig, ExecutorKind
from backend.core.clock import Clock, MonotonicClock
from backend.core.errors import ConfigError
from backend.core.executor import Executor
from backend.engine.engine import Command, Emit, Engine, Record
from backend.engine.scheduler import make_scheduler
from backend.server.intake import Abilities, PromptTokenizer
from backend.server.startup import measure_speed, memory_line, speed_line, speed_of
from backend.text.grammar import Grammars
from backend.text.sim_tokenizer import SimTokenizer
from backend.text.tokenizer import Tokenizer, load_tokenizer
from kv.errors import KVConfigError

logger = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]  # the stage, and the fraction done where it is known


class EngineLike(Protocol):
    """The face of an engine that the process around it sees; `backend.engine.engine.Engine` satisfies it."""

    error: BaseException | None

    @property
    def honours_plans(self) -> bool:
        """Whether each step is our policy's; else it only decides who is admitted. May turn false while running."""
        ...

    @property
    def can_be_inspected(self) -> bool:
        """Whether it carries out `Inspect`: only an engine that keeps the KV cache and its requests itself does."""
        ...

    def post(self, command: Command) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...


def make_tokenizer(config: EngineConfig) -> PromptTokenizer:
    """Return the tokenizer of the configured model. Raises ConfigError."""
    match config.executor:
        case ExecutorKind.SIM:
            return SimTokenizer(config.sim.vocab_size, config.sim.eos_token_id)
        case ExecutorKind.TORCH:
            return load_tokenizer(config.torch.model_path)
        case ExecutorKind.VLLM:
            return load_tokenizer(config.vllm.model)
        case ExecutorKind.TRTLLM:
            assert config.trtllm is not None, "a trtllm configuration without its section"
            return load_tokenizer(config.trtllm.model)


@dataclass(frozen=True, slots=True)
class Runtime:
    """An engine that is loaded.

    max_seq_len: the longest prompt and output together, in tokens. vocab_size: ids that the model, and so a prompt, may
    hold, from 0 on. abilities: what a request may ask for. close: to be called after `engine.run` has returned. facts:
    lines about memory and speed, for whoever starts it.
    """

    engine: EngineLike
    max_seq_len: int
    vocab_size: int
    abilities: Abilities
    close: Callable[[], None] = lambda: None
    facts: Sequence[str] = ()


def load_runtime(
    config: EngineConfig, tokenizer: PromptTokenizer, emit: Emit, record: Record, report: Progress
) -> Runtime:
    """Load the model and return an engine around it.

    Raises ConfigError where the model is missing, unsupported or does not fit, and ExecutorError where loading fails.
    """
    clock = MonotonicClock()
    has_top_log_probs = config.executor in (ExecutorKind.TORCH, ExecutorKind.VLLM)
    has_log_probs = has_top_log_probs or config.executor is ExecutorKind.TRTLLM
    abilities = Abilities(config.executor.value, has_log_probs=has_log_probs, has_top_log_probs=has_top_log_probs)
    if config.executor is ExecutorKind.TRTLLM:
        from backend.executors.trtllm.loading import load_engine

        assert config.trtllm is not None, "a trtllm configuration without its section"
        trtllm = load_engine(config.trtllm, config.scheduler, emit, clock, report)
        return Runtime(trtllm, trtllm.max_seq_len, tokenizer.vocab_size, abilities)
    if config.executor is ExecutorKind.VLLM:
        from backend.executors.vllm.loading import load_engine as load_vllm

        vllm = load_vllm(config.vllm, config.scheduler, tokenizer.eos_token_ids, emit, clock, report)
        check_vocabulary(tokenizer, vllm.vocab_size)
        if vllm.follows_schemas:
            abilities = replace(abilities, compile_schema=lambda *_: None)  # it does so itself
        facts = [vllm.facts, speed_line(speed_of(vllm.latency), config.service.default_slo)]
        return Runtime(vllm.engine, vllm.engine.max_seq_len, vllm.vocab_size, abilities, facts=facts)
    executor = _make_executor(config, clock, report)
    capacity = executor.capacity()
    vocab_size = tokenizer.vocab_size if capacity.vocab_size is None else capacity.vocab_size
    check_vocabulary(tokenizer, vocab_size)
    try:
        scheduler = make_scheduler(config.scheduler, capacity, tokenizer.eos_token_ids)
    except KVConfigError as error:
        raise ConfigError(f"the KV cache: {error}") from error
    facts = _facts(config, executor, report)
    engine = Engine(scheduler, executor, clock, emit, record)
    close = executor.close
    if config.executor is ExecutorKind.TORCH and (grammars := _make_grammars(tokenizer)) is not None:
        abilities = replace(abilities, compile_schema=grammars.grammar, is_checked=grammars.is_checked)
        close = partial(_close_all, executor.close, grammars.close)
    return Runtime(engine, capacity.max_seq_len, vocab_size, abilities, close, facts)


def _make_grammars(tokenizer: PromptTokenizer) -> Grammars | None:
    """Return what compiles schemas for a real tokenizer; None where there is no library for it, or no end to a text."""
    assert isinstance(tokenizer, Tokenizer), "a real model has a real tokenizer"
    try:
        return Grammars(tokenizer) if tokenizer.eos_token_ids else None
    except ImportError as error:
        logger.warning("json_schema is refused: %s", error)
        return None


def _close_all(*close: Callable[[], None]) -> None:
    for each in close:
        each()


def _facts(config: EngineConfig, executor: Executor, report: Progress) -> list[str]:
    """Return lines about a real model; a simulated one has the speed that its settings say."""
    if config.executor is ExecutorKind.SIM:
        return []
    report("measuring steps", 1.0)
    return [
        executor.capacity().description,
        memory_line(executor.capacity()),
        speed_line(measure_speed(executor), config.service.default_slo),
    ]


def check_vocabulary(tokenizer: PromptTokenizer, vocab_size: int) -> None:
    """Compare the tokenizer with a model of `vocab_size` token ids. Raises ConfigError where no prompt can be served.

    Fine-tuned models often come with a token more (for padding) than their embedding has rows, which no prompt needs.
    """
    if (largest := max(tokenizer.encode(""), default=0)) >= vocab_size:
        raise ConfigError(f"the tokenizer puts token {largest} into every prompt; the model knows {vocab_size} ids")
    if tokenizer.vocab_size > vocab_size:
        logger.warning(
            "the tokenizer has token ids up to %d, the model knows %d: prompts with others are refused",
            tokenizer.vocab_size - 1,
            vocab_size,
        )


def _make_executor(config: EngineConfig, clock: Clock, report: Progress) -> Executor:
    if config.executor is ExecutorKind.SIM:
        from backend.executors.sim import SimExecutor

        return SimExecutor(config.sim, clock)
    from backend.executors.torch_engine import load

    return load(config.torch, report)
