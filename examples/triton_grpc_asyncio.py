"""Many streams over gRPC with tritonclient's asyncio client.  python examples/triton_grpc_asyncio.py [host:port]"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton

URL = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"


def request(model: str, text: str) -> dict[str, Any]:
    """Return the arguments of one request."""
    inputs = [
        triton.InferInput("text_input", [1], "BYTES").set_data_from_numpy(np.array([text], dtype=object)),
        triton.InferInput("max_tokens", [1], "INT32").set_data_from_numpy(np.array([16], dtype=np.int32)),
        triton.InferInput("stream", [1], "BOOL").set_data_from_numpy(np.array([True])),
    ]
    return {"model_name": model, "inputs": inputs}


async def stream(client: triton.InferenceServerClient, model: str, text: str) -> str:
    """Return the whole answer of one request, read as it streams."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield request(model, text)

    answer = ""
    async for result, error in client.stream_infer(requests()):
        if error:
            raise error
        answer += result.as_numpy("text_output")[0].decode()
    return answer


async def main() -> None:
    """Run best-effort and real-time requests side by side; the model's name says the class."""
    async with triton.InferenceServerClient(URL) as client:
        models = ["bros_be"] * 6 + ["bros_rt"] * 2
        answers = await asyncio.gather(*(stream(client, model, f"{n} little ducks") for n, model in enumerate(models)))
    for model, answer in zip(models, answers, strict=True):
        print(f"{model}:{answer!r}")


try:
    asyncio.run(main())
except grpc.aio.AioRpcError as error:
    raise SystemExit(error.details()) from None
