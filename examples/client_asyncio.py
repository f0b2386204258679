"""Summaries in the background, an answer in the foreground.  python examples/client_asyncio.py [URL]"""

import asyncio
import sys

from client import AsyncClient, Retry

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"


async def main() -> None:
    """Send eight best-effort requests and, while they run, stream a real-time one."""
    async with AsyncClient(URL, retry=Retry(max_attempts=10)) as client, asyncio.TaskGroup() as group:
        jobs = [
            group.create_task(client.generate(f"Chapter {n}:", priority_class="be", deadline_s=600, max_tokens=64))
            for n in range(8)
        ]
        async with client.stream("Once upon a time", priority_class="rt", ttft_slo_s=0.5, max_tokens=32) as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
        for number, chapter in enumerate(await asyncio.gather(*jobs)):
            print(f"\n--- chapter {number}, {len(chapter.token_ids)} tokens:{chapter.text}", end="")
    print()


try:
    asyncio.run(main())
except ExceptionGroup as group:  # the first of them ended the others
    raise SystemExit(str(group.exceptions[0])) from None
