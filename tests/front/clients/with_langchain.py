"""Talks to a front door with langchain-openai, and prints as JSON what it saw: `python with_langchain.py http://…/v1`."""

import asyncio
import json
import sys
from typing import Any

from langchain_openai import ChatOpenAI

QUESTION = "Why is the sky blue?"


def main(url: str) -> dict[str, object]:
    models = {tier: chat(url, tier) for tier in ("priority", "flex")}
    answers = {tier: model.invoke(QUESTION) for tier, model in models.items()}
    pieces = list(models["priority"].stream(QUESTION, stream_usage=True))
    return {
        "tiers": {tier: answer.response_metadata["service_tier"] for tier, answer in answers.items()},
        "texts": [answer.content for answer in answers.values()],
        "num_tokens": [answer.usage_metadata["output_tokens"] for answer in answers.values()],
        "streamed": "".join(piece.content for piece in pieces),
        "streamed_tokens": [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata],
        "async": asyncio.run(several(models)),
        "error": error_of(chat(url, "flex", model="nobody")),
    }


def chat(url: str, tier: str, model: str = "bros") -> ChatOpenAI:
    extra = {"min_tokens": 5, "ignore_eos": True}
    return ChatOpenAI(
        model=model, base_url=url, api_key="none", max_tokens=5, max_retries=0, service_tier=tier, extra_body=extra
    )


async def several(models: dict[str, Any]) -> list[str]:
    streamed = [piece.content async for piece in models["flex"].astream(QUESTION)]
    whole = await models["priority"].abatch([QUESTION] * 4)
    return ["".join(streamed), *(answer.content for answer in whole)]


def error_of(model: ChatOpenAI) -> str:
    try:
        model.invoke(QUESTION)
    except Exception as error:
        return type(error).__module__.split(".")[0] + "." + type(error).__name__
    return "none"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
