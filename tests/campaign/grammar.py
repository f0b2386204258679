"""A client's bytes on the wire: whole requests of both request paths, good and bad, made by (seed, number) alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from backend.wire import names as wire
from tests.campaign.envelopes import grpc_case, http_case
from tests.campaign.messages import Case, Fields
from tests.campaign.values import HOSTILE, Raw, messages_text, odd_name, sampling_text

MODELS = ("bros", "bros_rt", "bros_be")

Mutation = Callable[[random.Random, Fields], None]


def make_case(seed: int, number: int) -> Case:
    """Return case `number`: a good request, changed in up to four ways."""
    chance = random.Random(f"{seed}/{number}")
    fields = good_fields(chance)
    changes = chance.sample(sorted(MUTATIONS), chance.choice((0, 1, 1, 1, 2, 2, 3, 4)))
    for name in changes:
        MUTATIONS[name](chance, fields)
    model = chance.choice(MODELS)
    make = http_case if chance.random() < 0.5 else grpc_case
    return make(chance, number, model, fields, changes)


def good_fields(chance: random.Random) -> Fields:
    """Return the fields of a request that is served, in no time."""
    prompt: Fields = chance.choice(
        (
            {"text_input": "the sea"},
            {"input_ids": [chance.randrange(3, 259) for _ in range(chance.randint(1, 40))]},
            {"messages": '[{"role": "user", "content": "hi"}]'},
        )
    )
    optional = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7, "ttft_slo_ms": 500.0, "stop_words": ["x"]}
    chosen = chance.sample(sorted(optional), chance.randint(0, 3))
    more = {name: optional[name] for name in chosen}
    return {**prompt, **more, "max_tokens": chance.randint(1, 8), "stream": chance.random() < 0.5}


# --- the changes ---------------------------------------------------------------------------------------------------


def _hostile_value(chance: random.Random, fields: Fields) -> None:
    fields[chance.choice(wire.INPUTS).name] = chance.choice(HOSTILE)


def _known_field(chance: random.Random, fields: Fields) -> None:
    fields[chance.choice(sorted(fields) or ["max_tokens"])] = chance.choice(HOSTILE)


def _unknown_name(chance: random.Random, fields: Fields) -> None:
    fields[odd_name(chance)] = chance.choice((1, "x", True, *HOSTILE[:6]))


def _messages(chance: random.Random, fields: Fields) -> None:
    fields.pop("text_input", None)
    fields.pop("input_ids", None)
    fields["messages"] = messages_text(chance)


def _sampling(chance: random.Random, fields: Fields) -> None:
    fields["sampling_parameters"] = sampling_text(chance)


def _token_ids(chance: random.Random, fields: Fields) -> None:
    fields.pop("text_input", None)
    fields.pop("messages", None)
    odd = [[], [0], [-1], [31_999], [32_000], [2**31 - 1], [-(2**31)], [5] * 5_000, [2] * 30, [5.5], ["x"], [[1, 2]]]
    fields["input_ids"] = chance.choice(odd)


def _class(chance: random.Random, fields: Fields) -> None:
    name = chance.choice(("priority_class", "priority", "x-priority-class"))
    fields[name] = chance.choice(("rt", "be", "RT", " be ", 1, 2, 3, 0, -1, True, "gold", "", "1", None, *HOSTILE[:4]))


def _objective(chance: random.Random, fields: Fields) -> None:
    name = chance.choice(("ttft_slo_ms", "tpot_slo_ms", "itl_slo_ms", "deadline_ms", "timeout"))
    fields[name] = chance.choice((1e-9, 1e-3, 0.5, 1.0, 1, 1e12, 0, -1, Raw("1e400"), Raw("NaN"), "soon", 2**63))


def _stop_words(chance: random.Random, fields: Fields) -> None:
    odd = ["", [""], ["x"] * 17, ["x"] * 10_000, ["x" * 257], ["x" * 100_000], [1], [["x"]], "x", None, {"a": 1}]
    fields["stop_words"] = chance.choice(odd)


def _long_text(chance: random.Random, fields: Fields) -> None:
    fields["text_input"] = chance.choice(("x", "ä", "😀", " ", "\0")) * chance.choice((1_000, 4_095, 4_096, 400_000))


def _long_output(chance: random.Random, fields: Fields) -> None:
    fields["max_tokens"] = chance.choice((200, 4_095, 4_096, 10_000_000))
    fields["timeout"] = chance.choice((1, 1_000, 300_000))  # microseconds: nobody waits for it


def _nothing_left(chance: random.Random, fields: Fields) -> None:
    fields.clear()
    fields.update(chance.choice(({}, {"max_tokens": 1}, {"inspect": "engine"}, {"inspect": "all"}, {"inspect": 1})))


MUTATIONS: Mapping[str, Mutation] = {
    "hostile value": _hostile_value,
    "hostile value in a field": _known_field,
    "unknown name": _unknown_name,
    "messages": _messages,
    "sampling parameters": _sampling,
    "token ids": _token_ids,
    "class": _class,
    "objective": _objective,
    "stop words": _stop_words,
    "long text": _long_text,
    "long output": _long_output,
    "nothing left": _nothing_left,
}
