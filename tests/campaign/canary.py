"""Canaries: one small request of each class on each request path, which must come back whole and soon at any time.

A best-effort one waits its turn: where others came before it and wait, it gets the time that their number may take.
"""

from __future__ import annotations

import asyncio
import itertools

from tests.campaign.house import House
from tests.campaign.messages import generate_bytes, grpc_bytes
from tests.campaign.request_paths import End, GrpcPath, Reply, ask_http
from tests.campaign.tokens import NameSearch

TIMEOUT_S = 10.0
WAITING_S = 2.0  # for each best-effort request in front: the longest takes ten seconds, with eight beside it
_PROMPT = [1_000, 1_001, 1_002]
_NUM_TOKENS = 3
_numbers = itertools.count(1)


async def canary(house: House) -> str:
    """Return which canaries did not come back, in words; empty when all did."""
    request_path = GrpcPath(house.grpc_url)
    try:
        wanted = [(model, where) for model in ("bros_rt", "bros_be", "bros") for where in ("gRPC", "HTTP")]
        return "; ".join(filter(None, await asyncio.gather(*(_ask(house, request_path, *each) for each in wanted))))
    finally:
        await request_path.close()


async def _ask(house: House, request_path: GrpcPath, model: str, where: str) -> str:
    """Ask once. Ask again with a longer timeout where the request waited in a queue of its class."""
    name, reply = await _send(house, request_path, model, where, TIMEOUT_S)
    if reply.end is End.HUNG and model != "bros_rt" and (num := await house.num_be_waiting()):
        name, reply = await _send(house, request_path, model, where, TIMEOUT_S + WAITING_S * num)
    words = _wrong(house.names, name, reply)
    return f"{model} over {where}: {words}" if words else ""


async def _send(house: House, request_path: GrpcPath, model: str, where: str, timeout_s: float) -> tuple[str, Reply]:
    name = f"canary-{next(_numbers)}"
    fields = {"input_ids": _PROMPT, "max_tokens": _NUM_TOKENS, "ignore_eos": True}
    house.num_canaries += 1
    if where == "gRPC":
        return name, await request_path.ask(grpc_bytes(model, name, fields), timeout_s)
    return name, await ask_http(house.http_port, generate_bytes(model, {**fields, "id": name}, "generate"), timeout_s)


def _wrong(names: NameSearch, name: str, reply: Reply) -> str:
    if reply.end is not End.ANSWERED:
        return f"{reply.end.value} {reply.words[:120]}"
    if len(reply.token_ids) != _NUM_TOKENS or names.find(name, len(_PROMPT), reply.token_ids) is None:
        return f"wrong tokens {reply.token_ids}"
    return ""
