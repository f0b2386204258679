"""Bodies that take long to read: they are refused early, and nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence

import pytest

from client import FakeServer
from client.generation import Generation, Messages
from client.openai.asked import MAX_LOG_PROBS, MAX_SENT_BYTES, Json
from client.openai.errors import ApiError
from client.openai.job import Job, batch_job
from client.openai.objects import MAX_MEMBERS, MAX_NESTED, read_object
from front.settings import Settings
from tests.front.door import CHAT_PATH, COMPLETIONS_PATH, Door, error_of, opened

SIZE = 3_000_000
TICK_S = 0.005
LONGEST_GAP_S = 0.8  # seen: 0.05 s; 1.3 s without the counts, 4.6 s without the thread either (two cores)
HEAD = '{"messages": [{"role": "user", "content": "a"}], '


def filled(head: str, item: str, tail: str, size: int = SIZE) -> bytes:
    """Return a body of `size` bytes that holds an item again and again."""
    return (head + ",".join([item] * (size // (len(item) + 1))) + tail).encode()


BODIES = {
    "lists": (COMPLETIONS_PATH, filled('{"prompt": [', "[1]", "]}")),
    "empty lists": (COMPLETIONS_PATH, filled('{"prompt": [', "[]", "]}")),
    "objects": (CHAT_PATH, filled('{"messages": [', "{}", "]}")),
    "schema": (CHAT_PATH, filled(HEAD + '"response_format": {"a": [', "[]", "]}}")),
    "tool": (
        CHAT_PATH,
        filled(
            HEAD + '"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a", '
            '"parameters": {"a": [',
            "{}",
            "]}}}]}",
        ),
    ),
    "calls": (
        CHAT_PATH,
        filled('{"messages": [{"role": "assistant", "tool_calls": [', '{"function": {"name": "a"}}', "]}]}"),
    ),
    "fields": (CHAT_PATH, (HEAD + ",".join(f'"f{number}": 1' for number in range(SIZE // 11)) + "}").encode()),
    "nesting": (COMPLETIONS_PATH, filled('{"prompt": [', "[" * 500 + "]" * 500, "]}")),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_too_many_values_is_refused_unread(name: str) -> None:
    path, body = BODIES[name]
    response = Door(settings=Settings(max_body_bytes=4 * SIZE)).send(
        "POST", path, content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert f"the most are {MAX_MEMBERS if name == 'fields' else MAX_NESTED}" in error_of(response)["message"]


@pytest.mark.parametrize("name", BODIES)
def test_a_line_of_too_many_values_is_refused_unread(name: str) -> None:
    with pytest.raises(ApiError, match="the most are"):
        batch_job(*BODIES[name])


def test_text_counts_for_nothing_whatever_it_holds() -> None:
    text = '[{:\\\\\\"' * 100_000  # as JSON writes it
    assert len(read_object(f'{{"prompt": "{text}"}}'.encode())["prompt"]) == 5 * 100_000


def test_token_ids_are_no_lists() -> None:
    body = filled('{"prompt": [', "49151", "]}", size=1_000_000)
    assert len(batch_job(COMPLETIONS_PATH, body).asked.prompts[0]) > 150_000


def test_arguments_of_a_call_are_bounded_too() -> None:
    inner = '{\\"a\\": [' + ",".join(["[]"] * 30_000) + "]}"
    call = f'{{"function": {{"name": "a", "arguments": "{inner}"}}}}'
    body = f'{{"messages": [{{"role": "assistant", "tool_calls": [{call}]}}]}}'
    with pytest.raises(ApiError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments holds 30002 lists"):
        batch_job(CHAT_PATH, body.encode())


@pytest.mark.parametrize("name", ["tools", "response_format"])
def test_schemas_are_bounded_in_bytes_too(name: str) -> None:
    schema = {"enum": [1] * 200_000}
    value = {
        "tools": [{"type": "function", "function": {"name": "a", "parameters": schema}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }[name]
    response = Door().chat(**{name: value})
    assert (response.status_code, error_of(response)["param"]) == (400, name)


def test_many_choices_of_a_long_prompt_are_refused() -> None:
    response = Door().complete(prompt="a " * 500_000, n=128)
    assert (response.status_code, error_of(response)["param"]) == (400, "n")


@pytest.mark.parametrize("fields", [{"n": 64, "max_tokens": 1000, "top_logprobs": 20}, {"n": 128, "max_tokens": 3000}])
def test_an_answer_of_too_many_log_probabilities_is_refused(fields: dict[str, int]) -> None:
    server = FakeServer()
    response = Door(server).chat(logprobs=True, **fields)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "logprobs")
    assert f"exceed {MAX_LOG_PROBS}" in error["message"]
    assert server.calls == []


@pytest.mark.parametrize(
    ("fields", "is_away"),
    [
        ({}, False),
        ({"n": 2}, False),
        ({"logprobs": True, "top_logprobs": 2, "max_tokens": 40}, False),
        ({"logprobs": True, "top_logprobs": 20, "max_tokens": 400}, True),
    ],
)
def test_a_long_answer_is_written_away_from_the_event_loop(
    fields: dict[str, object], is_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    answer = Job.answer

    def note(job: Job, generations: Sequence[Generation]) -> Json:
        threads.append(threading.current_thread())
        return answer(job, generations)

    monkeypatch.setattr(Job, "answer", note)
    assert Door().chat(**fields).status_code == 200
    assert [thread is not threading.main_thread() for thread in threads] == [is_away]


def test_nobody_waits_for_bodies_that_are_refused() -> None:
    server = FakeServer()

    async def main() -> tuple[set[int], float]:
        gaps: list[float] = []
        async with opened(server, Settings(max_body_bytes=4 * SIZE)) as (_, http):

            async def tick() -> None:
                while True:
                    began_s = time.perf_counter()
                    await asyncio.sleep(TICK_S)
                    gaps.append(time.perf_counter() - began_s)

            async def send(path: str, body: bytes) -> int:
                head = {"content-type": "application/json"}
                return (await http.post(path, content=body, headers=head)).status_code

            ticker = asyncio.create_task(tick())
            statuses = await asyncio.gather(*(send(*each) for each in BODIES.values()))
            ticker.cancel()
        return set(statuses), max(gaps)

    statuses, longest_s = asyncio.run(main())
    assert statuses == {400}
    assert longest_s < LONGEST_GAP_S


@pytest.mark.parametrize("num_choices", [5, 128])
def test_choices_that_bring_a_long_prompt_along_are_bounded_in_bytes(num_choices: int) -> None:
    body = json.dumps({"prompt": "a" * (MAX_SENT_BYTES // num_choices), "n": num_choices}).encode()
    with pytest.raises(ApiError, match=f"n: {num_choices} choices for a body of .* exceed {MAX_SENT_BYTES} bytes"):
        batch_job(COMPLETIONS_PATH, body)
    response = Door().send("POST", COMPLETIONS_PATH, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)["param"]) == (400, "n")


def test_messages_are_encoded_once_for_all_choices() -> None:
    messages = [{"role": "user", "content": "\u00fc"}]
    asked = batch_job(CHAT_PATH, json.dumps({"messages": messages, "n": 3}).encode()).asked
    first = asked.prompt_of(0)
    assert isinstance(first, Messages)
    assert json.loads(first.json) == messages
    assert asked.prompt_of(2) is first
