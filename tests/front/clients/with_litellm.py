"""Talks to a front door with litellm, and prints as JSON what it saw: `python with_litellm.py http://…/v1`."""

import asyncio
import json
import sys

import litellm

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def main(url: str) -> dict[str, object]:
    asked = {
        "model": "openai/bros",
        "api_base": url,
        "api_key": "none",
        "messages": MESSAGES,
        "max_tokens": 5,
        "num_retries": 0,
        "extra_body": {"min_tokens": 5, "ignore_eos": True},
    }
    answers = {tier: litellm.completion(**asked, service_tier=tier) for tier in ("priority", "flex")}
    pieces = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    return {
        "tiers": {tier: answer.service_tier for tier, answer in answers.items()},
        "texts": [answer.choices[0].message.content for answer in answers.values()],
        "num_tokens": [answer.usage.completion_tokens for answer in answers.values()],
        "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
        "streamed_tokens": [piece.usage.completion_tokens for piece in pieces if getattr(piece, "usage", None)],
        "async": asyncio.run(several(asked)),
        "error": error_of(asked | {"model": "openai/nobody"}),
    }


async def several(asked: dict[str, object]) -> list[str]:
    stream = await litellm.acompletion(**asked, service_tier="priority", stream=True)
    streamed = [piece.choices[0].delta.content or "" async for piece in stream]
    whole = await asyncio.gather(*(litellm.acompletion(**asked, service_tier="flex") for _ in range(4)))
    return ["".join(streamed), *(answer.choices[0].message.content for answer in whole)]


def error_of(asked: dict[str, object]) -> str:
    try:
        litellm.completion(**asked)
    except Exception as error:
        return type(error).__module__.split(".")[0] + "." + type(error).__name__
    return "none"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
