"""Our sampling parameters in vLLM's words, and its outcome in ours."""

from __future__ import annotations

from collections.abc import Collection

from backend.core.request import FinishReason, SamplingParams

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.CANCELLED,
}


def sampling_arguments(params: SamplingParams, eos_token_ids: Collection[int]) -> dict[str, object]:
    """Return the keyword arguments of `vllm.SamplingParams` for `params`.

    Text is made by our tokenizer, so vLLM has none. It neither detokenises nor knows ends of its own. It gets ours as
    stop tokens, which stay in the output.
    """
    ends = params.stop_token_ids | (frozenset() if params.ignore_eos else frozenset(eos_token_ids))
    arguments: dict[str, object] = {
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,
        "detokenize": False,
    }
    if params.temperature > 0.0:
        arguments["seed"] = params.seed
    if params.wants_log_probs:
        arguments["logprobs"] = params.num_top_log_probs  # beside that of the sampled token
    if params.json_schema is not None:
        arguments["structured_outputs"] = {"json": params.json_schema}
    return arguments
