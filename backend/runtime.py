"""Puts an engine together from its configuration: tokenizer, executor, scheduler, clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.clock import Clock, MonotonicClock
from backend.config import EngineConfig, ExecutorKind
from backend.engine import Command, Emit, Engine, Record
from backend.executors import Executor
from backend.intake import PromptTokenizer
from backend.scheduler import make_scheduler
from backend.sim_tokenizer import SimTokenizer
from backend.startup import measure_speed, memory_line, speed_line
from backend.tokenizer import load_tokenizer

Progress = Callable[[str, float | None], None]  # what is being done, and the fraction done where it is known


class EngineLike(Protocol):
    """The face of an engine that the process around it sees; `backend.engine.Engine` satisfies it."""

    error: BaseException | None

    @property
    def honours_plans(self) -> bool:
        """Whether each step is our policy's; else it only decides who is admitted. May turn false while running."""
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
        case ExecutorKind.TRTLLM:
            assert config.trtllm is not None, "a trtllm configuration without its section"
            return load_tokenizer(config.trtllm.model)


@dataclass(frozen=True, slots=True)
class Runtime:
    """An engine that is loaded.

    max_seq_len: the longest prompt and output together, in tokens. close: to be called after `engine.run` has returned.
    facts: lines about memory and speed, for whoever starts it.
    """

    engine: EngineLike
    max_seq_len: int
    close: Callable[[], None] = lambda: None
    facts: Sequence[str] = ()


def load_runtime(
    config: EngineConfig, tokenizer: PromptTokenizer, emit: Emit, record: Record, report: Progress
) -> Runtime:
    """Load the model and return an engine around it.

    Raises ConfigError where the model is missing, unsupported or does not fit, and ExecutorError where loading fails.
    """
    clock = MonotonicClock()
    if config.executor is ExecutorKind.TRTLLM:
        from backend.executors.trtllm.loading import load_engine

        assert config.trtllm is not None, "a trtllm configuration without its section"
        engine = load_engine(config.trtllm, config.scheduler, emit, clock, report)
        return Runtime(engine, engine.max_seq_len)
    executor = _make_executor(config, clock, report)
    capacity = executor.capacity()
    scheduler = make_scheduler(config.scheduler, capacity, tokenizer.eos_token_ids)
    facts = _facts(config, executor, report)
    return Runtime(Engine(scheduler, executor, clock, emit, record), capacity.max_seq_len, executor.close, facts)


def _facts(config: EngineConfig, executor: Executor, report: Progress) -> list[str]:
    """Return lines about a real model; a simulated one has the speed that its settings say."""
    if config.executor is ExecutorKind.SIM:
        return []
    report("measuring steps", 1.0)
    return [memory_line(executor.capacity()), speed_line(measure_speed(executor), config.service.default_slo)]


def _make_executor(config: EngineConfig, clock: Clock, report: Progress) -> Executor:
    if config.executor is ExecutorKind.SIM:
        from backend.executors.sim import SimExecutor

        return SimExecutor(config.sim, clock)
    from backend.executors.torch_engine import load

    return load(config.torch, report)
