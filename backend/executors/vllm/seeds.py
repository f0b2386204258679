"""Seeds on a CPU: a prompt that takes several steps draws nothing before its last one.

vLLM samples for every request of a step. Where the prompt goes on in the next step, it takes the draw back from the
request's generator. A generator on a CPU cannot go back, so the step raises (seen in vLLM 0.32,
`GPUModelRunner._bookkeeping_sync`), and every stream would end. Here such a request has no generator while the step
samples. It draws from the common one, and vLLM drops that token.
"""

from __future__ import annotations

from typing import Any


def hide_generators_of_unfinished(worker: Any) -> None:
    """Wrap how the model runner of `worker` samples. Called in every worker process."""
    runner = worker.model_runner
    sample_tokens = runner.sample_tokens

    def sample(*arguments: Any, **options: Any) -> Any:
        generators = runner.input_batch.generators
        unfinished = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
        hidden = {index: generators.pop(index) for index in unfinished if index in generators}
        try:
            return sample_tokens(*arguments, **options)
        finally:
            generators.update(hidden)

    runner.sample_tokens = sample
