"""Other people's clients and load tools, in an environment of their own, against the whole stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.front.clients.places import clients_python, run, seen_by
from tests.triton.servers import Server, wait_until

pytestmark = [pytest.mark.clients, pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(900)]
NUM_TOKENS = 5
NUM_REQUESTS = 24


def write_llm_models(folder: Path, url: str) -> None:
    """Write the file in which llm finds models of other servers; JSON is YAML."""
    (folder / "llm").mkdir()
    models = [
        {"model_id": name, "model_name": model, "api_base": url, "service_tier": True}
        for name, model in (("ours", "bros"), ("nobody", "nobody"))
    ]
    (folder / "llm" / "extra-openai-models.yaml").write_text(json.dumps(models))


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("with_litellm", "litellm.NotFoundError"),
        ("with_langchain", "langchain_openai.OpenAIModelNotFoundError"),
        ("with_llm", "openai.NotFoundError"),
    ],
)
def test_a_library_gets_tiers_streams_and_its_own_errors(sim: Server, tmp_path: Path, program: str, error: str) -> None:
    clients_python()
    write_llm_models(tmp_path, sim.openai_url)
    served = {each: f'bros_requests_total{{class="{each}",outcome="length"}}' for each in ("rt", "be")}
    before = {each: sim.metric(series) for each, series in served.items()}
    seen: dict[str, Any] = seen_by(program, tmp_path, sim.openai_url)
    assert seen["tiers"] == {"priority": "priority", "flex": "flex"}
    assert all(seen["texts"])
    assert seen["num_tokens"] == [NUM_TOKENS] * 2
    assert seen["streamed"]
    assert seen["streamed_tokens"] == [NUM_TOKENS]
    assert len(seen["async"]) == 5
    assert all(seen["async"])
    assert seen["error"] == error
    for each, series in served.items():  # a canary of the launcher may be among the real-time ones
        wait_until(lambda s=series, n=before[each]: sim.metric(s) >= n + 2, f"two answers of class {each}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    seen_by("save_tokenizer", folder, str(folder))
    return folder


def tool(name: str) -> Path:
    """Return a command of the clients' environment."""
    return clients_python().parent / name


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("tier", ["priority", "flex"])
def test_guidellm_reports_no_error(sim: Server, tmp_path: Path, tokenizer: Path, path: str, tier: str) -> None:
    backend = {
        "kind": "openai_http",
        "target": sim.openai_url.removesuffix("/v1"),
        "model": "bros",
        "request_format": path,
        "extras": {"body": {"service_tier": tier}},
    }
    command = [
        *(tool("guidellm"), "run", "--disable-console-interactive"),
        *("--backend", json.dumps(backend)),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--output", f"kind=json,path={tmp_path / 'report.json'}"),
    ]
    run(command, tmp_path)
    (benchmark,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (NUM_REQUESTS, 0, 0)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("tier", ["priority", "flex"])
def test_aiperf_reports_no_error(sim: Server, tmp_path: Path, tokenizer: Path, endpoint: str, tier: str) -> None:
    command = [
        *(tool("aiperf"), "profile", "--model", "bros", "--url", sim.openai_url.removesuffix("/v1")),
        *("--endpoint-type", endpoint, "--streaming", "--tokenizer", str(tokenizer), "--ui", "none"),
        *("--request-count", str(NUM_REQUESTS), "--concurrency", "4", "--isl", "32", "--osl", "8"),
        *("--extra-inputs", f"service_tier:{tier}", "--extra-inputs", "ignore_eos:true"),
        *("--artifact-dir", str(tmp_path / "report")),
    ]
    run(command, tmp_path, {})  # told to be offline, it takes the tokenizer's folder for a name on Hugging Face
    (path,) = (tmp_path / "report").rglob("profile_export_aiperf.json")
    report = json.loads(path.read_text())
    assert report["request_count"]["avg"] == NUM_REQUESTS
    assert "error_request_count" not in report or report["error_request_count"]["avg"] == 0
    assert report["error_summary"] == []
