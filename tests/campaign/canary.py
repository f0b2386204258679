"""Canaries: one small request of each class on each road, which must come back whole and soon, whatever goes on."""

from __future__ import annotations

import asyncio
import itertools

from tests.campaign.house import House
from tests.campaign.messages import generate_bytes, grpc_bytes
from tests.campaign.roads import End, GrpcRoad, Reply, ask_http
from tests.campaign.tokens import NameSearch

TIMEOUT_S = 10.0
_PROMPT = [1_000, 1_001, 1_002]
_NUM_TOKENS = 3
_numbers = itertools.count(1)


async def canary(house: House) -> str:
    """Return which canaries did not come back, in words; empty when all did."""
    road = GrpcRoad(house.grpc_url)
    try:
        fields = {"input_ids": _PROMPT, "max_tokens": _NUM_TOKENS, "ignore_eos": True}
        wanted = {}
        for model in ("bros_rt", "bros_be", "bros"):
            name = f"canary-{next(_numbers)}"
            wanted[f"{model} over gRPC", name] = road.ask(grpc_bytes(model, name, fields), TIMEOUT_S)
            name = f"canary-{next(_numbers)}"
            wanted[f"{model} over HTTP", name] = ask_http(
                house.http_port, generate_bytes(model, {**fields, "id": name}, "generate"), TIMEOUT_S
            )
        replies = await asyncio.gather(*wanted.values())
    finally:
        await road.close()
    house.num_canaries += len(wanted)
    wrong = [
        f"{where}: {words}"
        for (where, name), reply in zip(wanted, replies, strict=True)
        if (words := _wrong(house.names, name, reply))
    ]
    return "; ".join(wrong)


def _wrong(names: NameSearch, name: str, reply: Reply) -> str:
    if reply.end is not End.ANSWERED:
        return f"{reply.end.value} {reply.words[:120]}"
    if len(reply.token_ids) != _NUM_TOKENS or names.find(name, len(_PROMPT), reply.token_ids) is None:
        return f"wrong tokens {reply.token_ids}"
    return ""
