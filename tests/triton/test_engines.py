"""The wire on the real model, whichever engine runs it (`--executor`): ends, seeds, errors, log-probabilities."""

from __future__ import annotations

import json

import pytest

from tests.triton.servers import Server, wait_until
from tests.triton.streams import Stream

pytestmark = [pytest.mark.triton, pytest.mark.vllm]

DRAWN = {"text_input": "The sea is", "max_tokens": 12, "temperature": 1.0, "ignore_eos": True}


def test_a_cancelled_stream_frees_its_requests_and_no_others(smollm: Server) -> None:
    long = {"text_input": "The sea is", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with Stream(smollm.grpc_url) as other:
        survivor = other.send(long, "bros_rt")
        leaving = Stream(smollm.grpc_url)
        answers = [leaving.send(long, model) for model in ("bros_rt", "bros_be")]
        wait_until(lambda: all(answer.responses for answer in (survivor, *answers)), "first tokens", 60.0)
        leaving.cancel()
        wait_until(lambda: smollm.num_requests() == 1, "cancellation")
        num_tokens = len(survivor.token_ids)
        wait_until(lambda: len(survivor.token_ids) > num_tokens, "the other stream's tokens")
        assert not survivor.is_final.is_set()
    wait_until(lambda: smollm.num_requests() == 0, "cancellation")


def test_a_seed_draws_the_same_text_again(smollm: Server) -> None:
    """Alone: beside others the last bits of bf16 and of 4-bit products depend on how many rows a step has."""
    first = smollm.generate(**DRAWN, seed=7)["output_ids"]
    assert smollm.generate(**DRAWN, seed=7)["output_ids"] == first
    assert smollm.generate(**DRAWN, seed=8)["output_ids"] != first


def test_streamed_log_probs_are_those_of_the_whole_answer(smollm: Server) -> None:
    asked = {"text_input": "The sea is", "max_tokens": 6, "return_log_probs": True, "ignore_eos": True}
    whole = smollm.generate(**asked)
    with Stream(smollm.grpc_url) as stream:
        answer = stream.ask({**asked, "stream": True}, "bros_rt")
    streamed = [float(value) for response in answer.responses for value in response.as_numpy("log_probs")]
    assert streamed == pytest.approx(whole["log_probs"], abs=0.05)
    assert answer.token_ids == whole["output_ids"]


def test_a_stop_token_ends_the_answer_and_stays_in_it(smollm: Server) -> None:
    token_ids = smollm.generate(text_input="The sea is", max_tokens=8)["output_ids"]
    stop = json.dumps({"stop_token_ids": [token_ids[3]]})
    answer = smollm.generate(text_input="The sea is", max_tokens=8, sampling_parameters=stop)
    first = token_ids.index(token_ids[3])
    assert (answer["finish_reason"], answer["output_ids"]) == ("stop", token_ids[: first + 1])


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"text_input": "x", "max_tokens": 9000}, "TOO_LARGE: "),
        ({"input_ids": [49_152]}, "INVALID_REQUEST: "),
        ({"text_input": "x", "top_p": 2.0}, "INVALID_REQUEST: "),
    ],
    ids=["too long", "no token id", "no share"],
)
def test_what_cannot_be_served_is_refused_with_its_code(smollm: Server, inputs: dict[str, object], code: str) -> None:
    with Stream(smollm.grpc_url) as stream:
        (error,) = stream.ask(inputs).errors
        assert error.startswith(code)
        assert stream.ask({"text_input": "x", "max_tokens": 1}).finish_reason == "length"
