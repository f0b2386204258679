"""Offers real-time chat to the front door, alone and beside a batch of `/v1/batches`: who meets the SLO, and how fast.

    python -m bench.beside_batch [--executor sim|torch] [--lines N] [--rate R] [--alone-s S] [--json] [--out FILE]

Chat requests arrive at random moments (Poisson) at a stated rate, first for `--alone-s` seconds, then until the batch
has ended. One meets its SLO when its first token and its mean time per further token are in time, as the client sees
them. The load is open-loop: a late answer does not hold the next request back.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from backend.core.numbers import positive, whole
from bench.common.command import as_command
from bench.common.output import put_out
from bench.common.provenance import provenance
from bench.live.door import Post, door_client
from bench.live.server import running_server
from client.transports.loopback import direct_mounts

CHAT_PATH = "/v1/chat/completions"
_POLL_S = 0.2
_ANSWER_TIMEOUT_S = 120.0
_ENDED = {"completed", "failed", "expired", "cancelled"}
_WORDS = (
    "sky",
    "sea",
    "sun",
    "tree",
    "stone",
    "river",
    "wind",
    "light",
    "rain",
    "snow",
    "bird",
    "fish",
    "road",
    "hill",
)


@dataclass(slots=True)
class Talk:
    """One chat request: when it was sent, got its first token and ended; times of `time.monotonic`."""

    sent_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    ended_s: float = 0.0
    num_tokens: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def note(self, num_tokens: int, has_ended: bool) -> None:
        now_s = time.monotonic()
        self.first_s = now_s if self.first_s is None else self.first_s
        self.num_tokens += num_tokens
        if has_ended:
            self.ended_s = now_s
            self.ended.set()

    @property
    def ttft_s(self) -> float:
        return float("inf") if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        return 0.0 if self.first_s is None else (self.ended_s - self.first_s) / max(1, self.num_tokens - 1)

    def meets(self, ttft_slo_s: float, tpot_slo_s: float) -> bool:
        return self.ttft_s <= ttft_slo_s and self.tpot_s <= tpot_slo_s


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    options, source = _parser().parse_args(), provenance()  # of the code that runs
    engine = ["--threads", str(options.threads), "--kv-tokens", "16384"] if options.executor == "torch" else []
    arguments = ["--executor", options.executor, *engine, "--openai-port", "0"]
    with running_server(arguments) as at:
        assert at.openai_url is not None
        with door_client(at.openai_url, CHAT_PATH) as post:
            result = measure(post, at.openai_url, options)
    settings = {name: str(value) for name, value in vars(options).items() if name != "out"}
    result |= {"settings": settings, "provenance": source}
    put_out(result, options, describe)
    return 0 if result["batch"]["num_completed"] == options.lines else 1


def measure(post: Post, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what chat saw alone and beside the batch, and how fast the batch went."""
    rng = np.random.default_rng(options.seed)
    end_s = time.monotonic() + options.alone_s
    alone = offer(post, options, rng, lambda: time.monotonic() >= end_s)
    begun_s = time.monotonic()
    batch = begin_batch(url, batch_lines(options.lines, options.be_tokens, rng))
    has_ended = threading.Event()
    waiting = threading.Thread(target=_await_batch, args=(url, batch, has_ended))
    waiting.start()
    beside = offer(post, options, rng, has_ended.is_set)
    waiting.join()
    duration_s = time.monotonic() - begun_s
    counts = get(url, f"/v1/batches/{batch['id']}")["request_counts"]
    return {
        "alone": summary(alone, options),
        "beside": summary(beside, options),
        "batch": {
            "num_completed": counts["completed"],
            "num_failed": counts["failed"],
            "lines_per_s": counts["completed"] / duration_s,
        },
    }


def offer(post: Post, options: argparse.Namespace, rng: np.random.Generator, is_over: Callable[[], bool]) -> list[Talk]:
    """Send chat requests at their moments until it is over; return them once all have ended."""
    talks: list[Talk] = []
    next_s = time.monotonic()
    while not is_over():
        next_s += rng.exponential(1.0 / options.rate)
        time.sleep(max(0.0, next_s - time.monotonic()))
        talk = Talk()
        post(_chat(rng, options), talk.note)
        talks.append(talk)
    for talk in talks:
        assert talk.ended.wait(_ANSWER_TIMEOUT_S), "a chat request did not end"
    return talks


def summary(talks: Sequence[Talk], options: argparse.Namespace) -> dict[str, Any]:
    """Return the part of the requests that met the SLO, and percentiles."""
    is_met = [talk.meets(options.ttft_slo_ms / 1e3, options.tpot_slo_ms / 1e3) for talk in talks]
    return {
        "num_requests": len(talks),
        "attainment": float(np.mean(is_met)),
        "ttft_ms": {f"p{q}": float(np.percentile([1e3 * talk.ttft_s for talk in talks], q)) for q in (50, 99)},
        "tpot_ms": {f"p{q}": float(np.percentile([1e3 * talk.tpot_s for talk in talks], q)) for q in (50, 99)},
    }


def describe(result: dict[str, Any]) -> str:
    """Return the result in words."""
    lines = []
    for name in ("alone", "beside"):
        seen = result[name]
        lines.append(
            f"real-time {name}: {seen['attainment']:.1%} of {seen['num_requests']} in their SLO, "
            f"TTFT p50 {seen['ttft_ms']['p50']:.0f} ms, p99 {seen['ttft_ms']['p99']:.0f} ms, "
            f"TPOT p99 {seen['tpot_ms']['p99']:.0f} ms"
        )
    batch = result["batch"]
    return "\n".join([*lines, f"batch: {batch['num_completed']} lines, {batch['lines_per_s']:.1f} lines/s"])


def batch_lines(num_lines: int, num_tokens: int, rng: np.random.Generator) -> bytes:
    """Return the input file of a batch."""
    bodies = (
        {"messages": _question(rng), "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
        for _ in range(num_lines)
    )
    lines = (
        {"custom_id": f"line-{number}", "method": "POST", "url": CHAT_PATH, "body": body}
        for number, body in enumerate(bodies)
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def begin_batch(url: str, lines: bytes) -> dict[str, Any]:
    """Upload the input and begin the batch."""
    mark = "bros-beside-batch"
    purpose = f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    form = (purpose + file).encode() + lines + f"\r\n--{mark}--\r\n".encode()
    uploaded = get(url, "/v1/files", form, f"multipart/form-data; boundary={mark}")
    asked = {"input_file_id": uploaded["id"], "endpoint": CHAT_PATH, "completion_window": "24h"}
    return get(url, "/v1/batches", json.dumps(asked).encode())


def get(url: str, path: str, content: bytes | None = None, media_type: str = "application/json") -> dict[str, Any]:
    """Return what a path answers, asked by POST where there is content."""
    method = "GET" if content is None else "POST"
    with httpx2.Client(timeout=_ANSWER_TIMEOUT_S, mounts=direct_mounts(url)) as http:
        answer = http.request(method, f"{url}{path}", content=content, headers={"Content-Type": media_type})
    return dict(answer.raise_for_status().json())


def _await_batch(url: str, batch: dict[str, Any], has_ended: threading.Event) -> None:
    try:
        while get(url, f"/v1/batches/{batch['id']}")["status"] not in _ENDED:
            time.sleep(_POLL_S)
    finally:
        has_ended.set()


def _chat(rng: np.random.Generator, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "messages": _question(rng),
        "max_tokens": options.rt_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "service_tier": "priority",
        "ttft_slo_ms": options.ttft_slo_ms,
        "tpot_slo_ms": options.tpot_slo_ms,
    }


def _question(rng: np.random.Generator) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(rng.choice(_WORDS, 24))}]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.beside_batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, kind: Callable[[str], object], default: float, words: str) -> None:
        parser.add_argument(flag, type=kind, default=default, help=f"{words} (default: %(default)s)")

    parser.add_argument("--executor", choices=["sim", "torch"], default="sim", help="(default: %(default)s)")
    add("--threads", whole(), 2, "of the torch engine")
    add("--lines", whole(), 1000, "of the batch")
    add("--be-tokens", whole(), 32, "output tokens of a line")
    add("--rt-tokens", whole(), 32, "output tokens of a chat request")
    add("--rate", positive, 1.0, "chat requests per second")
    add("--alone-s", positive, 60.0, "seconds without the batch")
    add("--ttft-slo-ms", positive, 2000.0, "time to first token to meet")
    add("--tpot-slo-ms", positive, 100.0, "mean time per further token to meet")
    add("--seed", whole(0), 0, "of arrivals and words")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
