"""The tokens of one request, counted while they come: OpenAI's `usage`."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.generation import Chunk, Generation
from client.openai.asked import Asked, Json


@dataclass(slots=True)
class Tally:
    """Counts each prompt once, however many choices it has, and the output of every choice."""

    asked: Asked
    _num_input: dict[int, int] = field(default_factory=dict)
    _num_cached: dict[int, int] = field(default_factory=dict)  # the least that a choice of the prompt found
    _num_output: dict[int, int] = field(default_factory=dict)

    def add(self, choice: int, part: Chunk | Generation) -> None:
        """Count what `part` of a choice says."""
        self._num_output[choice] = self._num_output.get(choice, 0) + len(part.token_ids)
        if part.metrics is not None:
            prompt, num_cached = choice // self.asked.n, part.metrics.num_cached_tokens
            self._num_input[prompt] = part.metrics.num_input_tokens
            self._num_cached[prompt] = min(num_cached, self._num_cached.get(prompt, num_cached))
            self._num_output[choice] = part.metrics.num_output_tokens

    @property
    def usage(self) -> Json:
        """The counts so far. The engine tells a prompt's at the end of its first choice."""
        num_input, num_output = sum(self._num_input.values()), sum(self._num_output.values())
        return {
            "prompt_tokens": num_input,
            "completion_tokens": num_output,
            "total_tokens": num_input + num_output,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached.values())},
        }
