"""Bursts of real-time over a best-effort backlog.  python examples/burst.py [URL] [SECONDS]"""

import asyncio
import random
import statistics
import sys
import time

from client import AsyncClient, Retry

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
DURATION_S = float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
NUM_BACKLOG = 16  # best-effort requests open at any time
BURST_EVERY_S, BURST_SIZE = 5.0, 6  # more at once than best-effort leaves room for: some of it is preempted

rng = random.Random(0)
ttfts_s: list[float] = []
num_be_tokens = 0


async def best_effort(client: AsyncClient) -> None:
    """Keep one best-effort request open."""
    global num_be_tokens
    while True:
        prompt = [rng.randrange(1_000, 20_000) for _ in range(rng.randint(60, 200))]
        answer = await client.generate(prompt, priority_class="be", max_tokens=rng.randint(32, 128), ignore_eos=True)
        num_be_tokens += len(answer.token_ids)


async def real_time(client: AsyncClient) -> None:
    """Stream one real-time answer and note when its first token came."""
    prompt = [rng.randrange(1_000, 20_000) for _ in range(rng.randint(20, 120))]
    started_s = time.monotonic()
    async with client.stream(prompt, priority_class="rt", max_tokens=rng.randint(16, 64), ignore_eos=True) as stream:
        await anext(stream)
        ttfts_s.append(time.monotonic() - started_s)
        async for _ in stream:
            pass


async def main() -> None:
    """Run both for the given time and say what they got."""
    started_s = time.monotonic()
    until_s = started_s + DURATION_S
    async with AsyncClient(URL, retry=Retry(max_attempts=100)) as client, asyncio.TaskGroup() as group:
        backlog = [group.create_task(best_effort(client)) for _ in range(NUM_BACKLOG)]
        while time.monotonic() < until_s:
            for _ in range(BURST_SIZE):
                group.create_task(real_time(client))
            await asyncio.sleep(BURST_EVERY_S)
        for task in backlog:
            task.cancel()
    elapsed_s = time.monotonic() - started_s
    median_s = statistics.median(ttfts_s)
    print(f"real-time:   {len(ttfts_s)} requests, TTFT median {median_s:.2f} s, max {max(ttfts_s):.2f} s")
    print(f"best-effort: {num_be_tokens} tokens, {num_be_tokens / elapsed_s:.0f} tokens/s")


try:
    asyncio.run(main())
except ExceptionGroup as group:  # the first of them ended the others
    raise SystemExit(str(group.exceptions[0])) from None
except KeyboardInterrupt:
    raise SystemExit("interrupted") from None
