"""Stream over HTTP with asyncio and httpx2.  python examples/http_asyncio.py [http://host:port]"""

import asyncio
import json
import sys

import httpx2

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


async def stream(http: httpx2.AsyncClient, text: str, priority: int) -> str:
    """Return the whole answer, read as it streams; `priority` 1 is real-time, 2 best-effort."""
    body = {"text_input": text, "max_tokens": 16, "stream": True, "priority": priority}
    answer = ""
    async with http.stream("POST", "/v2/models/bros/generate_stream", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                answer += event.get("error") or event["text_output"]
    return answer


async def main() -> None:
    """Run a real-time and a best-effort request side by side."""
    async with httpx2.AsyncClient(base_url=URL, timeout=60.0) as http:
        rt, be = await asyncio.gather(stream(http, "The sea is", 1), stream(http, "The sky is", 2))
    print(f"rt:{rt!r}\nbe:{be!r}")


try:
    asyncio.run(main())
except httpx2.TransportError as error:  # nobody listens there, for instance
    raise SystemExit(f"{URL}: {error}") from None
