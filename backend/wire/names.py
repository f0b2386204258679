"""Every name on the wire, in one table: inputs, outputs, request parameters, model configuration keys.

The three `config.pbtxt` files and the `client` package repeat these names, because Triton and a client installation
cannot import this module. A contract test compares them with these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor. `dims` as in config.pbtxt: -1 is any length. `alias_of` names the field it stands for."""

    name: str
    dtype: str
    dims: int
    doc: str
    alias_of: str | None = None


INPUTS = (
    Field("text_input", "STRING", 1, "Prompt text. Exactly one of text_input, messages and input_ids is given."),
    Field("messages", "STRING", 1, "Prompt as a JSON list of chat messages, put through the model's chat template."),
    Field(
        "tools",
        "STRING",
        1,
        "Tools for the chat template to show beside messages: a JSON list in OpenAI's form, at most 256 KiB.",
    ),
    Field("input_ids", "INT32", -1, "Prompt as token ids."),
    Field("priority_class", "STRING", 1, "Class of service: rt (also 1) or be (also 2)."),
    Field("ttft_slo_ms", "FP32", 1, "rt: time to first token to meet, in ms."),
    Field("tpot_slo_ms", "FP32", 1, "rt: mean time per output token after the first to meet, in ms."),
    Field("itl_slo_ms", "FP32", 1, "rt: longest gap between two tokens to allow, in ms."),
    Field("deadline_ms", "FP32", 1, "be: finish by, in ms from arrival."),
    Field("cache_salt", "STRING", 1, "Requests share KV only with those of the same salt; at most 128 characters."),
    Field("max_tokens", "INT32", 1, "Output tokens at most."),
    Field("min_tokens", "INT32", 1, "Output tokens before an end token or a stop word may end the answer."),
    Field("min_length", "INT32", 1, "Alias of min_tokens (TensorRT-LLM).", alias_of="min_tokens"),
    Field("stream", "BOOL", 1, "true: a response for every new piece of text; false (default): one, with the whole."),
    Field("streaming", "BOOL", 1, "Alias of stream (TensorRT-LLM).", alias_of="stream"),
    Field(
        "sampling_parameters",
        "STRING",
        1,
        "Sampling fields as one JSON object (vLLM backend). One that is also sent by itself must be equal.",
    ),
    Field("temperature", "FP32", 1, "0 (default) is greedy."),
    Field("top_k", "INT32", 1, "Sample among the k likeliest tokens; 0 or -1 keeps all."),
    Field("top_p", "FP32", 1, "Sample among the likeliest tokens that together reach this probability."),
    Field("min_p", "FP32", 1, "Drop tokens less likely than this share of the likeliest one."),
    Field("repetition_penalty", "FP32", 1, "Above 1 discourages tokens that were seen already."),
    Field("presence_penalty", "FP32", 1, "Added once against tokens already in the output, -2 to 2."),
    Field("frequency_penalty", "FP32", 1, "Added per occurrence against tokens already in the output, -2 to 2."),
    Field("seed", "UINT64", 1, "Seed of the sampler: same seed, same tokens. Random when absent."),
    Field("random_seed", "UINT64", 1, "Alias of seed (TensorRT-LLM).", alias_of="seed"),
    Field("stop_words", "STRING", -1, "The output ends before the first of these strings."),
    Field("ignore_eos", "BOOL", 1, "true: do not stop at the model's end token."),
    Field(
        "json_schema",
        "STRING",
        1,
        "The output is JSON that conforms to this JSON schema, at most 64 KiB; then neither min_tokens nor ignore_eos.",
    ),
    Field("exclude_input_in_output", "BOOL", 1, "false: put the prompt in front of the output; default true."),
    Field("return_log_probs", "BOOL", 1, "true: log_probs comes with output_ids."),
    Field("return_logprobs", "BOOL", 1, "Alias of return_log_probs (vLLM backend).", alias_of="return_log_probs"),
    Field(
        "num_top_log_probs",
        "INT32",
        1,
        "How many of the likeliest tokens, 0 to 20, come with each log-probability: top_ids and top_log_probs.",
    ),
    Field("return_metrics", "BOOL", 1, "true: the final response carries the timings and counts below."),
    Field("return_finish_reason", "BOOL", 1, "Accepted for the vLLM backend's sake: finish_reason always comes."),
    Field("return_num_input_tokens", "BOOL", 1, "true: the final response carries num_input_tokens."),
    Field("return_num_output_tokens", "BOOL", 1, "true: the final response carries num_output_tokens."),
)

OUTPUTS = (
    Field("text_output", "STRING", -1, "The new text since the last response; the whole text without stream."),
    Field("output_ids", "INT32", -1, "The token ids behind text_output."),
    Field("log_probs", "FP32", -1, "Their log-probabilities, when return_log_probs is set."),
    Field(
        "top_ids",
        "INT32",
        -1,
        "The likeliest tokens at the position of each of output_ids, num_top_log_probs of them each, likeliest first.",
    ),
    Field("top_log_probs", "FP32", -1, "Their log-probabilities."),
    Field("finish_reason", "STRING", 1, "On the final response: stop, length or cancelled."),
    Field("ttft_ms", "FP32", 1, "Arrival at the server to the first token, in ms (return_metrics)."),
    Field("tpot_ms", "FP32", 1, "Mean time per output token after the first, in ms (return_metrics)."),
    Field("queue_ms", "FP32", 1, "Arrival to the first step that worked on the request, in ms (return_metrics)."),
    Field("num_preemptions", "INT32", 1, "How often the request lost KV slots to another (return_metrics)."),
    Field("num_input_tokens", "INT32", 1, "Tokens of the prompt (return_metrics)."),
    Field("num_output_tokens", "INT32", 1, "Tokens of the output (return_metrics)."),
    Field("num_cached_tokens", "INT32", 1, "Tokens of the prompt whose KV was there already (return_metrics)."),
    Field("hopeless_slo", "BOOL", 1, "true: no schedule could keep the SLO, even with nothing else (return_metrics)."),
)

PRIORITY = "priority"  # parameter of the generate endpoints: 1 = rt, 2 = be
TIMEOUT = "timeout"  # parameter of the generate endpoints: microseconds, as Triton's own request timeout
CLASS_HEADER = "x-priority-class"  # parameter made of a gRPC header that the server was told to forward
INSPECT = "inspect"  # parameter: answer with the engine's snapshot as JSON in text_output; takes no prompt
INSPECT_ENGINE = "engine"  # its value for the whole snapshot
INSPECT_COUNTS = "counts"  # its value for a snapshot that names no request
INSPECT_STUB = "stub"  # its value for a canary, which the stub itself answers

PARAMETERS = {
    PRIORITY: "Class of service as a number (generate endpoints): 1 = rt, 2 = be.",
    TIMEOUT: "Give up after this many microseconds (generate endpoints; over gRPC use the request's own timeout).",
    CLASS_HEADER: "Class of service from a gRPC header (`--grpc-header-forward-pattern='(?i)x-.*'`).",
    INSPECT: "`engine`: answer with a snapshot of the engine as JSON in text_output; no prompt then. `counts`: one "
    "without its requests. `stub`: a sign of life, without the engine.",
}
# What TensorRT-LLM's clients send besides, and the values that change nothing; () is any, since nothing is padded here.
FIXED_PARAMETERS: Mapping[str, tuple[object, ...]] = {
    "bad_words": ("",),
    "beam_width": (1,),
    "num_return_sequences": (1,),
    "length_penalty": (1, 0),
    "return_context_logits": (False,),
    "return_generation_logits": (False,),
    "pad_id": (),
}
IGNORED_PARAMETERS = frozenset({"id"})  # the generate endpoints repeat the request id here
IGNORED_PARAMETER_PREFIXES = ("triton_", "x-")  # Triton's own and forwarded headers

CLASS_WORDS = {"rt": "rt", "1": "rt", "be": "be", "2": "be"}

# config.pbtxt parameters of the three models
MODEL_CLASS = "priority_class"  # rt | be: every request of this model; per_request: the request says
MODEL_MAX_INFLIGHT = "max_inflight"  # of each instance, in the engine at once; more wait in Triton's queue. 0: no bound
MODEL_REPORTS_METRICS = "reports_metrics"  # true for exactly one model, so that nothing counts twice
PER_REQUEST = "per_request"

MODELS = {"bros": PER_REQUEST, "bros_rt": "rt", "bros_be": "be"}


def input_names() -> dict[str, Field]:
    """Return the inputs by name."""
    return {field.name: field for field in INPUTS}
