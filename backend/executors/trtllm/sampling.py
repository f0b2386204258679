"""Translates our sampling parameters to TensorRT-LLM's, and its finish reasons to ours."""

from __future__ import annotations

from backend.core.request import FinishReason, SamplingParams

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "timeout": FinishReason.CANCELLED,
    "cancelled": FinishReason.CANCELLED,
}


def sampling_arguments(params: SamplingParams) -> dict[str, object]:
    """Return the keyword arguments of `tensorrt_llm.SamplingParams` for `params`.

    Our tokenizer makes the text, so detokenisation is off. Stop tokens stay in the output, as with our own engines.
    """
    arguments: dict[str, object] = {
        "max_tokens": params.max_tokens,
        "ignore_eos": params.ignore_eos,
        "include_stop_str_in_output": True,
        "detokenize": False,
        **_choice(params),
        **_where_not_neutral(params),
    }
    if params.stop_token_ids:
        arguments["stop_token_ids"] = sorted(params.stop_token_ids)
    if params.wants_log_probs:
        arguments["logprobs"] = 1
    return arguments


def _choice(params: SamplingParams) -> dict[str, object]:
    """Return the arguments that say how a token is drawn.

    TensorRT-LLM takes `top_k=1` as greedy, and also the absence of `top_k` and `top_p`. So a random draw sets both.
    """
    if params.temperature == 0.0:
        return {"top_k": 1}
    return {
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "seed": params.seed,
    }


def _where_not_neutral(params: SamplingParams) -> dict[str, object]:
    """Return the parameters that are not neutral. The presence of one costs time in TensorRT-LLM's sampler."""
    neutral = SamplingParams()
    names = ("min_tokens", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return {name: value for name in names if (value := getattr(params, name)) != getattr(neutral, name)}
