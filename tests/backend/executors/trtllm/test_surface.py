"""What the adapter reads of TensorRT-LLM's classes is there, in the source that BROS_TRTLLM_SOURCE names.

The files are parsed, not run. A file that a copy lacks is skipped aloud; a class that moved or lost a name fails.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.core.request import SamplingParams
from backend.executors.trtllm.sampling import sampling_arguments
from tests.backend.executors.trtllm.real_source import VARIABLE

pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"{VARIABLE} is not set: no copy of TensorRT-LLM's source to test against"
)

_EXECUTOR = "_torch/pyexecutor"
_EVERYTHING = SamplingParams(
    max_tokens=1,
    temperature=0.7,
    top_k=3,
    top_p=0.9,
    seed=1,
    min_p=0.1,
    min_tokens=1,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    stop_token_ids=frozenset({1}),
    wants_log_probs=True,
)
# (where the class may be, by version; the class, None: any; its methods, fields and attributes that the adapter uses)
SURFACE = {
    "step loop": (
        (f"{_EXECUTOR}/py_executor.py",),
        "PyExecutor",
        {"scheduler", "kv_cache_manager", "max_num_active_requests", "disable_overlap_scheduler"},
    ),
    "its owner": (("executor/base_worker.py", "executor/worker.py"), None, {"engine", "abort_request"}),
    "active request": ((f"{_EXECUTOR}/llm_request.py",), "LlmRequest", {"py_request_id", "py_client_id"}),
    "KV manager V1": (
        (f"{_EXECUTOR}/kv_cache/kv_cache_manager.py", f"{_EXECUTOR}/resource_manager.py"),
        "KVCacheManager",
        {"get_kv_cache_stats", "tokens_per_block", "max_seq_len"},
    ),
    "KV manager V2": (
        (f"{_EXECUTOR}/kv_cache/kv_cache_manager_v2.py", f"{_EXECUTOR}/kv_cache_manager_v2.py"),
        "KVCacheManagerV2",
        {"suspend_request", "is_request_active", "tokens_per_block", "max_seq_len", "impl"},
    ),
    "LLM": (("llmapi/llm.py",), None, {"_executor", "generate_async", "get_stats_async", "shutdown"}),
    "answer": (
        ("executor/result.py",),
        "GenerationResult",
        {"request_id", "abort", "finished", "__aiter__", "__anext__"},
    ),
    "completion": (
        ("executor/result.py",),
        "CompletionOutput",
        {"token_ids", "logprobs", "finish_reason", "stop_reason"},
    ),
    "sampling parameters": (("sampling_params.py",), "SamplingParams", set(sampling_arguments(_EVERYTHING))),
    "scheduler configuration": (("llmapi/llm_args.py",), "SchedulerConfig", {"capacity_scheduler_policy"}),
}


def parsed(paths: tuple[str, ...]) -> ast.Module:
    """Return the first of `paths` that this copy has."""
    root = Path(os.environ[VARIABLE]) / "tensorrt_llm"
    for path in paths:
        if (root / path).is_file():
            return ast.parse((root / path).read_text())
    pytest.skip(f"this copy has no {' or '.join(paths)}")


def names_in(node: ast.ClassDef) -> Iterator[str]:
    """Yield the names of methods and fields of a class, and of attributes that its methods set on `self`."""
    for child in ast.walk(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


@pytest.mark.parametrize("what", SURFACE)
def test_the_names_that_the_adapter_uses_are_there(what: str) -> None:
    paths, class_name, wanted = SURFACE[what]
    classes = [node for node in ast.walk(parsed(paths)) if isinstance(node, ast.ClassDef)]
    found = {name for node in classes if class_name in (None, node.name) for name in names_in(node)}
    assert wanted <= found, f"{class_name}: {sorted(wanted - found)} not found"


def test_the_client_id_gets_from_the_answer_to_the_active_request() -> None:
    """All that ties our ticket to a request: `Request(client_id=request.id)`, and `LlmRequest(client_id=...)` of it."""
    calls = {
        "Request": parsed(("executor/base_worker.py", "executor/worker.py")),
        "LlmRequest": parsed((f"{_EXECUTOR}/llm_request.py",)),
    }
    for name, module in calls.items():
        made = [node for node in ast.walk(module) if isinstance(node, ast.Call) and _name(node.func) == name]
        keywords = [keyword for node in made for keyword in node.keywords if keyword.arg == "client_id"]
        passed = [ast.unparse(keyword.value) for keyword in keywords]
        assert any("client_id" in value or value == "request.id" for value in passed), f"{name}: {passed}"


def test_generate_async_takes_what_is_passed() -> None:
    functions = [node for node in ast.walk(parsed(("llmapi/llm.py",))) if isinstance(node, ast.FunctionDef)]
    (generate_async,) = [node for node in functions if node.name == "generate_async"]
    assert {"inputs", "sampling_params", "streaming"} <= {argument.arg for argument in generate_async.args.args}


def _name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None
