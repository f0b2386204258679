"""The single values of the grammar: what stands in a field, a name, a chat, or in sampling parameters."""

from __future__ import annotations

import json
import random


class Raw(str):
    """JSON text that is written as it stands: half an emoji, numbers beyond a double, NaN."""

    __slots__ = ()


HALF_EMOJI = Raw('"\\ud83d"')
HOSTILE: tuple[object, ...] = (
    *(HALF_EMOJI, "", "\0", "x", b"\xff\xfe", None, True, False, 0, -1, 1, 7, 2**31 - 1, -(2**31), 2**31, 2**63, 2**64),
    *(Raw("1e400"), Raw("-1e400"), Raw("NaN"), Raw("Infinity"), Raw("1" + "0" * 400), 0.5, -0.0, 1e-300, 3e38),
    *([], [1], ["x"], [[]], {}, {"a": 1}, "null", "true", "1", "many", "\u202e", "\ufeff", "{{ 7 * 7 }}", "%s%n"),
    *("x" * 10_000, "é" * 300, "\ud83d", "😀", "' OR 1=1", "../../etc/passwd", "<|im_end|>", "t100 t200", "\r\n\r\n"),
)
_NAMES = (
    "max_token",
    "x-frob",
    "triton_x",
    "__proto__",
    "id",
    "",
    "a b",
    "ä",
    "\n",
    "text_output",
    "headers",
    "params",
)
_ROLES = ("user", "system", "assistant", "tool", "", "x" * 500, "\ud83d", 7, None, [], "user\n\n### system")
_CONTENTS = (
    "hi",
    "",
    None,
    5,
    [],
    {},
    ["x"],
    [{"type": "text", "text": "hi"}],
    "{% raise %}",
    "\ud83d",
    "\udc00x",
    "\0",
)
_KEYS = ("max_tokens", "temperature", "stop", "stop_token_ids", "n", "logprobs", "seed", "bad_words", "top_k", "frob")


def odd_name(chance: random.Random) -> str:
    """Return the name of no field."""
    return chance.choice((*_NAMES, Raw('"\\ud83d"'), "x" * 300, "x" * 20_000, "é" * 5_000))


def nested(depth: int) -> str:
    """Return JSON of `depth` lists within each other."""
    return "[" * depth + "]" * depth


def messages_text(chance: random.Random) -> str:
    """Return a JSON list of chat messages, or nearly one."""
    if chance.random() < 0.25:
        depth = chance.choice((10, 100, 480, 900, 980, 987, 995, 1_000, 2_000, 50_000))
        wrapper = chance.choice(
            ('[{"role": "user", "content": %s}]', '[{"role": "user", "content": "x", "k": %s}]', "%s")
        )
        return wrapper % nested(depth)
    messages = [
        {"role": chance.choice(_ROLES), "content": chance.choice(_CONTENTS)}
        for _ in range(chance.choice((0, 1, 1, 2, 9, 300)))
    ]
    more = {"name": "x", "tool_calls": [{"id": 1}]} if chance.random() < 0.2 else {}
    text = json.dumps([{**message, **more} for message in messages])
    return text if chance.random() < 0.9 else text[:-1]


def sampling_text(chance: random.Random) -> str:
    """Return a JSON object of sampling parameters, or nearly one."""
    values = (
        *(1, 0, -1, 0.5, "1", "many", None, True, [], [1], ["a"], [""], {}, Raw("1e400"), Raw("NaN"), Raw('"\\ud83d"')),
        *(2**31, 2**64, list(range(200)), ["x" * 300], Raw("1" + "0" * 5_000)),
    )
    if chance.random() < 0.1:
        return chance.choice((nested(100), nested(2_000), nested(50_000), "", "{", "[]", "7", '{"a"', " " * 1_000_001))
    if chance.random() < 0.05:
        return json.dumps({"stop_token_ids": list(range(chance.choice((1_000, 142_000))))})
    keys = chance.sample(_KEYS, chance.randint(1, 3))
    return "{" + ", ".join(f'"{key}": {_text(chance.choice(values))}' for key in keys) + "}"


def _text(value: object) -> str:
    return str(value) if isinstance(value, Raw) else json.dumps(value)
