"""Time our torch engine beside llama.cpp: same model file, same threads, interleaved, medians.

    python -m bench.peers --out bench/results/llama-cpp-avx512-bf16.json
    python -m bench.peers --isa avx2 --out bench/results/llama-cpp-avx2.json      # both with AVX2 only

llama.cpp comes from the npm package `@node-llama-cpp/linux-x64`, whose builds cover every instruction set; npm installs
it into `.cache/peers` the first time (30 MB). Each engine is a process of its own that waits while the other computes.
A decode is the median of seven in a row.

    floor of a decode  = bytes of the file's weights, K and V / measured read bandwidth
    floor of a prefill = the products at the speed of one large product
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.core.numbers import whole
from backend.text.model_files import resolve_model
from bench.common.command import as_command
from bench.common.provenance import describe, provenance

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, VERSION = "@node-llama-cpp/linux-x64", "3.21.1"
CONTEXT, CHUNK = 256, 512
DECODES_IN_A_ROW = 7
DECODES, PREFILLS = (1, 2, 4, 8, 16, 32), (128, 512, 2048)
AVX2_FEATURES = "sse,sse2,sse3,ssse3,sse4.1,sse4.2,popcnt,cx16,avx,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,mmx"
# What torch, oneDNN and numba read when they are loaded.
HELD_DOWN = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": ",".join(f"+{name}" for name in AVX2_FEATURES.split(",")),
}
# From the most demanding build on; each with a flag of /proc/cpuinfo that it cannot do without.
VARIANTS = {
    "sapphirerapids": "amx_int8",
    "zen4": "avx512_bf16",
    "icelake": "avx512_vnni",
    "skylakex": "avx512f",
    "haswell": "avx2",
    "x64": "sse2",
}


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", choices=["native", "avx2"], default="native", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=whole(), default=9, help="turns of each engine (default: %(default)s)")
    parser.add_argument("--threads", type=whole(), default=len(os.sched_getaffinity(0)), help="(default: all cores)")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    parser.add_argument("--worker", choices=["bros", "llama.cpp"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments.isa, arguments.threads)
    document = measure(arguments.isa, arguments.rounds, arguments.threads)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    return 0


def measure(isa: str, rounds: int, threads: int) -> dict[str, Any]:
    """Let both engines compute every case, interleaved, in `rounds` rounds after one to warm up."""
    install()
    names = ("bros", "llama.cpp")
    workers = {name: _Worker(name, isa, threads) for name in names}
    try:
        cases = [f"decode {n}" for n in DECODES] + [f"prefill {n}" for n in PREFILLS]
        seconds: dict[str, dict[str, list[float]]] = {case: {name: [] for name in names} for case in cases}
        for turn in range(rounds + 1):
            print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
            for case in cases:
                for name in names if turn % 2 else reversed(names):
                    duration_s = workers[name].ask(case)
                    if turn:
                        seconds[case][name].append(duration_s)
        floors = workers["bros"].ask_floors()
        engines = {name: worker.description for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    rows = [
        {
            "case": case,
            "floor_s": floors[case],
            **{f"{name}_s": statistics.median(each) for name, each in seconds[case].items()},
            **{f"{name}_quartiles_s": statistics.quantiles(each, n=4)[::2] for name, each in seconds[case].items()},
            "ratio": statistics.median(
                ours / theirs for ours, theirs in zip(*(seconds[case][name] for name in names), strict=True)
            ),
        }
        for case in cases
    ]
    config = {"isa": isa, "rounds": rounds, "threads": threads, "context": CONTEXT, "chunk": CHUNK}
    return {"provenance": provenance(), "config": config, "engines": engines, "rows": rows}


def table(document: Mapping[str, Any]) -> str:
    """Return the rows as text: milliseconds of a step or a prompt, ours over theirs (below 1: ours is faster)."""
    lines = [f"{'ms':14}{'bros':>10}{'llama.cpp':>12}{'ratio':>8}{'floor':>10}"]
    lines += [
        f"{row['case']:14}{row['bros_s'] * 1e3:10.1f}{row['llama.cpp_s'] * 1e3:12.1f}{row['ratio']:8.2f}"
        f"{row['floor_s'] * 1e3:10.1f}"
        for row in document["rows"]
    ]
    return "\n".join([*lines, *document["engines"].values(), describe(document["provenance"])])


def install() -> Path:
    """Return the folder of llama.cpp's libraries, installed first where they are not there."""
    home = ROOT / ".cache" / "peers"
    folder = home / "node_modules" / PACKAGE / "bins" / "linux-x64"
    if not folder.is_dir():
        print(f"installing {PACKAGE} {VERSION} with npm (30 MB)", file=sys.stderr, flush=True)
        home.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(home), "--ignore-scripts", "--no-audit", f"{PACKAGE}@{VERSION}"]
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"llama.cpp could not be installed: {error}") from error
    return folder


class _Worker:
    """A process that computes one case at a time."""

    def __init__(self, name: str, isa: str, threads: int) -> None:
        command = [sys.executable, "-m", "bench.peers", "--worker", name, "--isa", isa, "--threads", str(threads)]
        environment = os.environ | (HELD_DOWN if isa == "avx2" else {})
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.description: str = self._read()

    def ask(self, case: str) -> float:
        return float(self._ask(case))

    def ask_floors(self) -> dict[str, float]:
        return dict(self._ask("floors"))

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {self._process.wait()}")
        return json.loads(line)


def work(name: str, isa: str, threads: int) -> int:
    """Compute the cases named on standard input; answer each with its seconds as a JSON line."""
    from bench.steps.peer_engines import BrosEngine, LlamaCppEngine

    engine = BrosEngine(threads) if name == "bros" else LlamaCppEngine(install(), variant(isa), threads)
    print(json.dumps(engine.description), flush=True)
    for line in sys.stdin:
        case = line.strip()
        print(json.dumps(engine.floors() if case == "floors" else in_a_row(engine.run, case)), flush=True)
    return 0


def in_a_row(run: Callable[[str], float], case: str) -> float:
    """Return the median of a few decodes in a row, as a server computes them: the first finds caches cold."""
    return statistics.median(run(case) for _ in range(DECODES_IN_A_ROW if case.startswith("decode") else 1))


def variant(isa: str) -> str:
    """Return the best of llama.cpp's builds for this processor, or for AVX2."""
    flags: Sequence[str] = Path("/proc/cpuinfo").read_text().split()
    if isa == "avx2":
        return "haswell"
    return next(name for name, flag in VARIANTS.items() if flag in flags)


def model_path() -> Path:
    """Return the file that both load."""
    return resolve_model(None).path


if __name__ == "__main__":
    sys.exit(main())
