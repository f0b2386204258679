"""Talks to a front door with llm, and prints as JSON what it saw: `python with_llm.py`.

The models stand in `extra-openai-models.yaml` of llm's own folder, as its documentation has it.
"""

import asyncio
import json

import llm

QUESTION = "Why is the sky blue?"


def main() -> dict[str, object]:
    model = llm.get_model("ours")
    answers = {
        tier: model.prompt(QUESTION, stream=False, max_tokens=5, service_tier=tier) for tier in ("priority", "flex")
    }
    texts = [answer.text() for answer in answers.values()]
    streamed = model.prompt(QUESTION, max_tokens=5, service_tier="priority")
    pieces = list(streamed)
    return {
        "tiers": {tier: answer.response_json["service_tier"] for tier, answer in answers.items()},
        "texts": texts,
        "num_tokens": [answer.output_tokens for answer in answers.values()],
        "streamed": "".join(pieces),
        "streamed_tokens": [streamed.output_tokens],
        "async": asyncio.run(several()),
        "error": error_of("nobody"),
    }


async def several() -> list[str]:
    model = llm.get_async_model("ours")
    streamed = [piece async for piece in model.prompt(QUESTION, max_tokens=5, service_tier="flex")]
    asked = [model.prompt(QUESTION, stream=False, max_tokens=5, service_tier="priority") for _ in range(4)]
    return ["".join(streamed), *(await asyncio.gather(*(answer.text() for answer in asked)))]


def error_of(name: str) -> str:
    try:
        llm.get_model(name).prompt(QUESTION).text()
    except Exception as error:
        return type(error).__module__.split(".")[0] + "." + type(error).__name__
    return "none"


if __name__ == "__main__":
    print(json.dumps(main()))
