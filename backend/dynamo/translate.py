"""Dynamo's words for a request and its answer, and ours. Pure.

The frontend renders templates, tokenises and detokenises: a request comes as token ids and its answer leaves as token
ids. Class and objectives come as headers, `x-dynamo-meta-NAME`, which reach the worker as metadata:

    policy-class  rt | be                          ttft-slo-ms, tpot-slo-ms, deadline-ms  milliseconds
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from backend.core.errors import InvalidRequestError
from backend.link.validate import Defaults, validate
from backend.wire.protocol import Chunk, Generation

_METADATA = {
    "policy-class": "priority_class",
    "ttft-slo-ms": "ttft_slo_ms",
    "tpot-slo-ms": "tpot_slo_ms",
    "deadline-ms": "deadline_ms",
}
_TEMPERATURE = 1.0  # where the client names none, as in OpenAI's API
_RETRIABLE = ("ENGINE_DOWN", "OVERLOADED", "EXECUTOR_FAILED")


def generation_of(request: Mapping[str, Any], metadata: Mapping[str, str], defaults: Defaults) -> Generation:
    """Return the engine's request for Dynamo's preprocessed `request`, checked as the stubs check theirs.

    A request that moved here from a dead worker carries the tokens it already has at the end of its prompt. Its
    `max_tokens` counts the tokens still to come, its `min_tokens` does not: it is `max_tokens` at most here.
    Raises InvalidRequestError, which names the option.
    """
    output = _section(request, "output_options")
    if output.get("prompt_logprobs") is not None:
        raise InvalidRequestError("prompt_logprobs: not supported by this engine")
    parameters: dict[str, object] = {ours: metadata[theirs] for theirs, ours in _METADATA.items() if theirs in metadata}
    parameters["sampling_parameters"] = json.dumps(_sampling(request))
    num_top = output.get("logprobs")  # alternatives; 0: of the token drawn only
    parameters |= {"stream": True, "return_log_probs": num_top is not None, "num_top_log_probs": num_top or 0}
    if (salt := _section(request, "routing").get("cache_salt")) is not None:
        parameters["cache_salt"] = salt
    return validate({"input_ids": np.asarray(request["token_ids"], np.int32)}, parameters, 0, defaults)


def answer_of(chunk: Chunk, generation: Generation, num_sent: int) -> dict[str, Any]:
    """Return a chunk in Dynamo's words; `num_sent` output tokens, this chunk's included, have left by now."""
    answer: dict[str, Any] = {"token_ids": list(chunk.token_ids), "index": 0}
    if chunk.log_probs is not None:
        answer["log_probs"] = list(chunk.log_probs)
    if chunk.top_ids:
        answer["top_logprobs"] = _alternatives(chunk, generation.sampling.num_top_log_probs)
    if chunk.end is not None:
        assert chunk.end.finish_reason is not None, "an error is raised, not answered"
        answer["finish_reason"] = chunk.end.finish_reason
        num_prompt = len(generation.token_ids or ())
        answer["completion_usage"] = {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_sent,
            "total_tokens": num_prompt + num_sent,
        }
        if chunk.end.timings is not None:
            details = {"cached_tokens": chunk.end.timings.num_cached_tokens}
            answer["completion_usage"]["prompt_tokens_details"] = details
    return answer


def _alternatives(chunk: Chunk, num_top: int) -> list[list[dict[str, Any]]]:
    """Return the likeliest tokens at each position of a chunk, likeliest first; the frontend knows their text."""
    ranked = [
        {"rank": index % num_top + 1, "token_id": token_id, "token": None, "logprob": log_prob}
        for index, (token_id, log_prob) in enumerate(zip(chunk.top_ids, chunk.top_log_probs, strict=True))
    ]
    return [ranked[start : start + num_top] for start in range(0, len(ranked), num_top)]


def is_worth_moving(error_code: str) -> bool:
    """Whether another worker may serve what this one failed with `error_code`."""
    return error_code in _RETRIABLE


def _sampling(request: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options by vLLM's names, without those that are not set. Stop strings stay with the frontend."""
    stop = dict(_section(request, "stop_conditions"))
    stop.pop("stop", None)
    stop.pop("max_thinking_tokens", None)
    stop_ids = [*(stop.pop("stop_token_ids", None) or ()), *(stop.pop("stop_token_ids_hidden", None) or ())]
    options = {"temperature": _TEMPERATURE, **_given(_section(request, "sampling_options")), **_given(stop)}
    if options.get("top_p") == 0:  # the likeliest token; to the engine it would say "not set"
        options |= {"temperature": 0.0, "top_p": 1.0}
    least, most = options.get("min_tokens"), options.get("max_tokens")
    if isinstance(least, int) and isinstance(most, int):
        options["min_tokens"] = min(least, most)
    if isinstance(options.get("seed"), int):
        options["seed"] &= 2**63 - 1  # Dynamo's is signed
    return options | ({"stop_token_ids": list(dict.fromkeys(stop_ids))} if stop_ids else {})


def _section(request: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return request.get(key) or {}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
