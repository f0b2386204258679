"""The contract with Triton's own OpenAI front end, run with `--backend vllm`: its requests, and how it reads answers.

Taken from `python/openai/openai_frontend/engine/utils/triton.py` of triton-inference-server/server, e1db8a6 (2026-08).
It runs Triton in its own process, by bindings that NVIDIA's containers alone have: so its requests go over gRPC here.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from backend.wire import names as wire
from tests.triton.servers import Server
from tests.triton.streams import Answer, Stream

FLAGS = ("stream", "exclude_input_in_output", "return_logprobs", "return_num_input_tokens", "return_num_output_tokens")
INPUTS = {"text_input": "STRING", "sampling_parameters": "STRING", **dict.fromkeys(FLAGS, "BOOL")}
CHAT = {  # model_dump(exclude_none=True) of a chat request that sets nothing; `max_tokens` is the front end's default
    "frequency_penalty": 0.0,
    "ignore_eos": False,
    "n": 1,
    "presence_penalty": 0.0,
    "temperature": 0.7,
    "top_p": 1.0,
    "max_tokens": 16,
}
COMPLETION = CHAT | {"temperature": 1.0}


def request(
    sampling: dict[str, Any], *, stream: bool = False, echo: bool = False, log_probs: bool = False
) -> dict[str, Any]:
    """Return the inputs of `_create_vllm_generate_request`: all of them, always."""
    return {
        "return_logprobs": log_probs,
        "text_input": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "stream": stream,
        "exclude_input_in_output": not echo,
        "sampling_parameters": json.dumps(sampling),
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def texts(answer: Answer) -> list[str]:
    """Return what `_get_output` reads of each response: one string, or it raises."""
    tensors = [response.as_numpy("text_output") for response in answer.responses]
    assert [tensor.size for tensor in tensors] == [1] * len(tensors)
    return [str(tensor.reshape(-1)[0], "utf-8") for tensor in tensors]


def usage(answer: Answer) -> tuple[int, int]:
    """Return what `_StreamingUsageAccumulator` makes of all responses: the first prompt, the sum of the outputs."""
    counts = [
        [response.as_numpy(f"num_{kind}_tokens") for kind in ("input", "output")] for response in answer.responses
    ]
    told = [pair for pair in counts if pair[0] is not None and pair[1] is not None]
    assert {tensor.dtype for pair in told for tensor in pair} <= {np.dtype(np.int32), np.dtype(np.uint32)}
    return int(told[0][0][0]), sum(int(num_output[0]) for _, num_output in told)


def test_the_configuration_takes_what_the_front_end_sends() -> None:
    declared = wire.input_names()
    assert {name: (declared[name].dtype, declared[name].dims) for name in INPUTS} == {
        name: (dtype, 1) for name, dtype in INPUTS.items()
    }
    assert set(request(CHAT)) == set(INPUTS)


@pytest.mark.triton
@pytest.mark.parametrize("model", ["bros", "bros_rt", "bros_be"])
def test_an_unstreamed_answer_is_one_response_and_the_last(sim: Server, model: str) -> None:
    with Stream(sim.grpc_url) as stream:
        answer = stream.ask(request(CHAT), model)
    assert (len(answer.responses), answer.num_finals, answer.errors) == (
        1,
        1,
        [],
    )  # it wants one or two, the last final
    (text,) = texts(answer)
    assert text
    num_input, num_output = usage(answer)
    assert num_input > 0
    assert 0 < num_output <= 16


@pytest.mark.triton
def test_a_stream_adds_up_to_its_usage(sim: Server) -> None:
    sampling = CHAT | {"max_tokens": 9, "min_tokens": 9, "seed": 7, "stop": ["\n\n\n"]}
    with Stream(sim.grpc_url) as stream:
        answer = stream.ask(request(sampling, stream=True), "bros_rt")
    assert answer.errors == []
    assert len(answer.responses) > 1
    assert "".join(texts(answer)).strip()
    assert usage(answer)[1] == 9


@pytest.mark.triton
def test_a_completion_that_echoes_has_the_prompt_in_front(sim: Server) -> None:
    asked = request(COMPLETION, echo=True)
    with Stream(sim.grpc_url) as stream:
        (text,) = texts(stream.ask(asked))
    assert text.startswith(asked["text_input"])


@pytest.mark.triton
@pytest.mark.parametrize("num_top", [1, 5])
def test_asked_for_log_probabilities_the_answer_comes_without_them(smollm: Server, num_top: int) -> None:
    with Stream(smollm.grpc_url) as stream:
        answer = stream.ask(request(CHAT | {"logprobs": num_top}, log_probs=True))
    assert answer.errors == []
    assert answer.responses[0].as_numpy("logprobs") is None  # vLLM's JSON: the front end then says `logprobs: null`


@pytest.mark.triton
@pytest.mark.parametrize(
    ("sampling", "words"),
    [({"n": 2}, "sampling_parameters.n"), ({"logit_bias": {"5": 1}}, "logit_bias"), ({"max_tokens": 0}, "max_tokens")],
)
def test_what_we_cannot_honour_is_an_error_that_names_it(sim: Server, sampling: dict[str, Any], words: str) -> None:
    with Stream(sim.grpc_url) as stream:
        answer = stream.ask(request(CHAT | sampling))
    assert answer.responses == []
    (error,) = answer.errors
    assert words in error
