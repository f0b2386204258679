"""Raw tensors and parameters in, a checked `Generation` out, or one clear InvalidRequestError.

A value may come as an input tensor, or as a request parameter of the same name, which the tensor wins over. It may also
come inside `sampling_parameters`; beside one of the others it must be equal there. The generate endpoints make a
parameter of every key that is no input. Pure: no Triton, no clock, no tokenizer (what messages hold, and whether a
prompt fits the model, is seen by `backend.server.intake`, in the engine process).

The class of a request, first match wins:
    1. the model's own (`bros_rt`, `bros_be`: config.pbtxt); a request that names the other class is refused
    2. `priority_class`, as an input tensor or as a parameter
    3. parameter `priority` (generate endpoints), 1 = rt, 2 = be
    4. parameter `x-priority-class`, made of a forwarded gRPC header
    5. `service.default_class` of engine.json
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.config import MAX_SECONDS, ServiceSettings
from backend.core.errors import InvalidRequestError, RequestTooLargeError
from backend.wire import names as wire
from backend.wire.coerce import as_bool, as_float, as_int, as_small_text, as_text, parse_json, show
from backend.wire.json_schema import as_json_schema
from backend.wire.protocol import Generation, Sampling

MAX_TOKENS = 10_000_000  # far above any model; a larger one was wrapped or mistyped
MAX_SAMPLING_BYTES = 100_000  # of the JSON in sampling_parameters; 16 stop words of 256 characters take half of it
MAX_TOOLS_BYTES = 256 * 1024
MAX_TOP_LOG_PROBS = 20
MAX_WHOLE_LOG_PROBS = 16_384  # alternatives in an answer of one piece. A step may end hundreds of them.
MAX_PARAMETERS = 256  # of one request, forwarded headers among them
MAX_NAME_CHARS = 128  # of a parameter or key that is compared with those known
MAX_SALT_CHARS = 128
_MAX_BYTES_PER_CHAR = 4  # of UTF-8
_MAX_JSON_CHARS_PER_CHAR = 12  # two escapes, `\ud83d\ude00`
_MICROSECONDS = 1e6
_FP32_ROUNDING = 1e-7  # of a fraction that comes as a tensor, relative to it

# What else vLLM's sampling parameters may hold: only the value that changes nothing is accepted.
_VLLM_FIXED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1, None),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "prompt_logprobs": (None,),
    "logits_processors": (None,),
    "truncate_prompt_tokens": (None,),
    "bad_words": (None, [], ""),
}
_VLLM_NAMES = {"stop": "stop_words", "stop_token_ids": "stop_token_ids", "logprobs": "return_log_probs"}
_WHETHER_TOLD = "return_log_probs"  # vLLM's backend takes it beside `logprobs`, which says how many there are to tell
_SAMPLING_NAMES = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request takes from its model and the configuration. `model_class`: rt, be or `wire.PER_REQUEST`."""

    model_name: str
    model_class: str
    service: ServiceSettings

    @property
    def usual_class(self) -> str:
        """The class of a request that names none."""
        return self.service.default_class.value if self.model_class == wire.PER_REQUEST else self.model_class


def wants_snapshot(parameters: Mapping[str, object], service: ServiceSettings) -> bool:
    """Tell whether a request asks for the engine's snapshot instead of text. Raises InvalidRequestError."""
    asked = parameters.get(wire.INSPECT)
    if asked is None:
        return False
    if asked not in (wire.INSPECT_ENGINE, wire.INSPECT_COUNTS):
        raise InvalidRequestError(
            f"{wire.INSPECT}: {show(asked)} is neither {wire.INSPECT_ENGINE!r} nor {wire.INSPECT_COUNTS!r}"
        )
    if asked == wire.INSPECT_ENGINE and not service.allow_inspect:
        raise InvalidRequestError(f"{wire.INSPECT}: {asked!r} is switched off here (service.allow_inspect)")
    return True


def validate(
    inputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, object],
    timeout_us: int,
    defaults: Defaults,
    max_seq_len: int | None = None,
) -> Generation:
    """Return the request that `inputs` (tensors by name, as numpy arrays) and `parameters` describe.

    `timeout_us` is Triton's own request timeout, 0 when unset. `max_seq_len`: tokens of prompt and output together,
    where the engine has said so. Raises InvalidRequestError, RequestTooLargeError.
    """
    values = _Values(inputs, parameters)
    service = defaults.service
    text, messages, token_ids = _prompt(values, service, max_seq_len)
    sampling, is_streamed = _sampling(values, service), values.get("stream", as_bool, False)
    if not is_streamed:
        _require_readable(sampling, service)
    return Generation(
        priority_class=_priority_class(values, defaults),
        text=text,
        messages=messages,
        tools=_tools(values, messages),
        token_ids=token_ids,
        sampling=sampling,
        stop_words=_stop_words(values, service),
        ttft_slo_s=_milliseconds(values, "ttft_slo_ms"),
        tpot_slo_s=_milliseconds(values, "tpot_slo_ms"),
        itl_slo_s=_milliseconds(values, "itl_slo_ms"),
        deadline_s=_milliseconds(values, "deadline_ms"),
        timeout_s=_timeout_s(values, timeout_us),
        cache_salt=values.get("cache_salt", _as_salt, ""),
        is_streamed=is_streamed,
        echoes_prompt=not values.get("exclude_input_in_output", as_bool, True),
        wants_log_probs=values.get("return_log_probs", _as_log_probs, False),
        wants_metrics=values.get("return_metrics", as_bool, False),
        wants_num_input_tokens=values.get("return_num_input_tokens", as_bool, False),
        wants_num_output_tokens=values.get("return_num_output_tokens", as_bool, False),
    )


T = TypeVar("T")
D = TypeVar("D")
_Named = tuple[str, object]  # the name a client used, and the value it gave


class _Values:
    """The values of one request by canonical name, still raw; unknown names are refused on the way in."""

    def __init__(self, inputs: Mapping[str, NDArray[Any]], parameters: Mapping[str, object]) -> None:
        if len(parameters) > MAX_PARAMETERS:
            raise InvalidRequestError(f"parameters: {len(parameters)} exceed {MAX_PARAMETERS}")
        self.parameters = parameters
        fields = wire.input_names()
        direct: dict[str, _Named] = {}
        for name, tensor in inputs.items():
            value = tensor if fields[name].dims == -1 else _scalar(name, tensor)
            _put(direct, fields[name], value)
        for name, value in parameters.items():
            if name in fields:
                if name not in inputs:
                    _put(direct, fields[name], value, overwrite=False)
            elif name in wire.FIXED_PARAMETERS:
                _refuse_other(name, value, wire.FIXED_PARAMETERS[name])
            elif not _is_known_parameter(name):
                raise InvalidRequestError(
                    f"unknown parameter {show(name)}{_suggestion(name, [*fields, *wire.PARAMETERS])}"
                )
        self._direct = direct
        _, nested = direct.pop("sampling_parameters", (None, None))
        self._nested = {} if nested is None else _sampling_parameters(nested)

    def get(self, name: str, convert: Callable[[str, object], T], default: D) -> T | D:
        """Return the value of `name` converted, or `default` when nobody gave one."""
        given = [each for each in (self._direct.get(name), self._nested.get(name)) if each and each[1] is not None]
        if not given:
            return default
        if name == _WHETHER_TOLD:
            del given[1:]
        values = [convert(given_as, value) for given_as, value in given]
        if not _is_same(values[0], values[-1]):
            (one, _), (other, _) = given
            raise InvalidRequestError(f"{one}: {show(values[0])} contradicts {other}: {show(values[1])}")
        return values[0]


def _put(values: dict[str, _Named], field: wire.Field, value: object, *, overwrite: bool = True) -> None:
    """Note a value under its canonical name. Raises InvalidRequestError where an alias says something else."""
    name = field.alias_of or field.name
    given_as, other = values.get(name, (field.name, value))
    if given_as != field.name and _plain(other) != _plain(value):
        raise InvalidRequestError(f"{given_as}: {show(other)} contradicts {field.name}: {show(value)}")
    if field.alias_of is None and overwrite:
        values[name] = (field.name, value)
    else:
        values.setdefault(name, (field.name, value))


def _plain(value: object) -> str:
    """Return a value so that the forms in which clients send it are the same."""
    value = value.item() if isinstance(value, np.generic) else value
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return {"true": "1", "false": "0"}.get(text.lower(), text)


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_FP32_ROUNDING)
    return one == other


def _is_known_parameter(name: str) -> bool:
    return (
        name in wire.PARAMETERS
        or name in wire.IGNORED_PARAMETERS
        or name[:MAX_NAME_CHARS].lower().startswith(wire.IGNORED_PARAMETER_PREFIXES)
    )


def _refuse_other(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse any value of a field that is known from elsewhere, but for those that change nothing."""
    if allowed and value not in allowed:
        words = " or ".join(map(show, allowed))
        raise InvalidRequestError(f"{name}: {show(value)} is not supported here; allowed: {words}")


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1) if len(name) <= MAX_NAME_CHARS else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _scalar(name: str, tensor: NDArray[Any]) -> object:
    if tensor.size != 1:
        raise InvalidRequestError(f"{name}: expected one value, got {tensor.size}")
    return tensor.reshape(-1)[0]


# --- prompt --------------------------------------------------------------------------------------------------------


def _prompt(
    values: _Values, service: ServiceSettings, max_seq_len: int | None
) -> tuple[str | None, str | None, tuple[int, ...] | None]:
    as_prompt = partial(_as_prompt, service.max_prompt_bytes)
    text = values.get("text_input", as_prompt, None)
    messages = values.get("messages", as_prompt, None)
    token_ids = values.get("input_ids", partial(_as_token_ids, service.max_prompt_bytes, max_seq_len), None)
    given = [
        name
        for name, value in (("text_input", text), ("messages", messages), ("input_ids", token_ids))
        if value is not None
    ]
    if len(given) != 1:
        raise InvalidRequestError(
            f"give exactly one of text_input, messages and input_ids; got {' and '.join(given) or 'none of them'}"
        )
    if text == "" or token_ids == ():
        raise InvalidRequestError(f"{given[0]}: the prompt is empty")
    return text, messages, token_ids


def _tools(values: _Values, messages: str | None) -> str | None:
    tools = values.get("tools", partial(as_small_text, max_bytes=MAX_TOOLS_BYTES), None)
    if tools is not None and messages is None:
        raise InvalidRequestError("tools: only with messages")
    return tools


def _as_prompt(max_bytes: int, name: str, value: object) -> str:
    num_bytes = len(value) if isinstance(value, (str, bytes)) else 0
    if num_bytes <= max_bytes:
        num_bytes = len(as_text(name, value, max_bytes).encode())
    if num_bytes > max_bytes:
        raise InvalidRequestError(f"{name}: {num_bytes} bytes exceed max_prompt_bytes {max_bytes}")
    return as_text(name, value, max_bytes)


def _as_token_ids(max_prompt_bytes: int, max_seq_len: int | None, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, np.ndarray):
        raise InvalidRequestError(f"{name}: expected a tensor of token ids, got {show(value)}")
    if value.size > max_prompt_bytes:  # a text of that length has fewer
        raise InvalidRequestError(f"{name}: {value.size} token ids exceed max_prompt_bytes {max_prompt_bytes}")
    # Before they are made a tuple: for a million ids that and the way to the engine take a tenth of a second.
    if max_seq_len is not None and value.size >= max_seq_len:
        raise RequestTooLargeError(f"{name}: prompt of {value.size} tokens exceeds max_seq_len {max_seq_len}")
    if value.size and (smallest := int(value.min())) < 0:
        raise InvalidRequestError(f"{name}: {smallest} is no token id")
    token_ids: list[int] = value.reshape(-1).tolist()
    return tuple(token_ids)


def _as_salt(name: str, value: object) -> str:
    text = as_text(name, value, _MAX_BYTES_PER_CHAR * MAX_SALT_CHARS)
    if len(text) > MAX_SALT_CHARS:
        raise InvalidRequestError(f"{name}: {len(text)} characters exceed {MAX_SALT_CHARS}")
    return text


# --- class, SLOs, times --------------------------------------------------------------------------------------------


def _priority_class(values: _Values, defaults: Defaults) -> str:
    asked = values.get("priority_class", _as_class, None)
    for parameter in (wire.PRIORITY, wire.CLASS_HEADER):
        if asked is None and parameter in values.parameters:
            asked = _as_class(parameter, values.parameters[parameter])
    if defaults.model_class == wire.PER_REQUEST:
        return asked or defaults.usual_class
    if asked is not None and asked != defaults.model_class:
        raise InvalidRequestError(
            f"priority_class: model {defaults.model_name!r} serves class {defaults.model_class!r} only, got {asked!r}"
        )
    return defaults.model_class


def _as_class(name: str, value: object) -> str:
    word = str(value) if isinstance(value, int) and not isinstance(value, bool) else as_text(name, value)
    chosen = wire.CLASS_WORDS.get(word.strip().lower())
    if chosen is None:
        raise InvalidRequestError(f"{name}: {show(word)} is no class of service; allowed: rt (1), be (2)")
    return chosen


def _milliseconds(values: _Values, name: str) -> float | None:
    milliseconds = values.get(name, as_float, None)
    if milliseconds is None:
        return None
    if not 0.0 < milliseconds <= MAX_SECONDS * 1e3:
        raise InvalidRequestError(f"{name}: {milliseconds:g} is not in (0, {MAX_SECONDS * 1e3:g}]")
    return milliseconds / 1e3


def _timeout_s(values: _Values, timeout_us: int) -> float | None:
    asked = timeout_us or values.parameters.get(wire.TIMEOUT)
    if asked is None:
        return None
    microseconds = as_int(wire.TIMEOUT, asked)
    if not 0 < microseconds <= MAX_SECONDS * _MICROSECONDS:
        raise InvalidRequestError(f"{wire.TIMEOUT}: {microseconds} us is not in (0, {MAX_SECONDS * _MICROSECONDS:g}]")
    return microseconds / _MICROSECONDS


# --- sampling ------------------------------------------------------------------------------------------------------


def _sampling(values: _Values, service: ServiceSettings) -> Sampling:
    def whole(name: str, default: int, low: int, high: int) -> int:
        return _in_range(name, values.get(name, as_int, default), low, high)

    def real(name: str, default: float, low: float, high: float) -> float:
        return _in_range(name, values.get(name, as_float, default), low, high)

    top_p = real("top_p", 1.0, 0.0, 1.0)
    top_k = _in_range("top_k", values.get("top_k", _as_top_k, 0), 0, MAX_TOKENS)
    temperature = real("temperature", 0.0, 0.0, 100.0)
    if top_p == 0.0:  # TensorRT-LLM's "not set": top_k alone chooses, and without one the likeliest token
        top_p, temperature = 1.0, temperature if top_k else 0.0
    repetition_penalty = real("repetition_penalty", 1.0, 0.0, 100.0)
    if repetition_penalty == 0.0:
        raise InvalidRequestError("repetition_penalty: 0 is not in (0, 100]")
    max_tokens = values.get("max_tokens", as_int, None)
    min_tokens = whole("min_tokens", 0, 0, MAX_TOKENS)
    if max_tokens is not None:
        _in_range("max_tokens", max_tokens, 1, MAX_TOKENS)
        if min_tokens > max_tokens:
            raise InvalidRequestError(f"min_tokens: {min_tokens} exceeds max_tokens {max_tokens}")
    seed = values.get("seed", as_int, None)
    num_top_log_probs = whole("num_top_log_probs", 0, 0, MAX_TOP_LOG_PROBS)
    if num_top_log_probs and not values.get("return_log_probs", _as_log_probs, False):
        raise InvalidRequestError("num_top_log_probs: only with return_log_probs")
    ignore_eos = values.get("ignore_eos", as_bool, False)
    json_schema = values.get("json_schema", as_json_schema, None)
    if json_schema is not None and (min_tokens or ignore_eos):
        raise InvalidRequestError(f"{'min_tokens' if min_tokens else 'ignore_eos'}: json_schema says where to end")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=real("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=repetition_penalty,
        presence_penalty=real("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=real("frequency_penalty", 0.0, -2.0, 2.0),
        seed=None if seed is None else _in_range("seed", seed, 0, 2**64 - 1),
        stop_token_ids=values.get("stop_token_ids", partial(_as_stop_token_ids, service.max_stop_token_ids), ()),
        ignore_eos=ignore_eos,
        json_schema=json_schema,
        num_top_log_probs=num_top_log_probs,
    )


def _require_readable(sampling: Sampling, service: ServiceSettings) -> None:
    """Refuse a whole answer whose alternatives would hold up the answers of others."""
    max_tokens = sampling.max_tokens or service.default_max_tokens
    if sampling.num_top_log_probs * max_tokens > MAX_WHOLE_LOG_PROBS:
        words = f"num_top_log_probs: {sampling.num_top_log_probs} for each of {max_tokens} tokens (max_tokens) exceed "
        raise InvalidRequestError(f"{words}{MAX_WHOLE_LOG_PROBS}, the most in an answer without stream")


def _as_top_k(name: str, value: object) -> int:
    """-1 and 0 both keep all tokens."""
    return 0 if (top_k := as_int(name, value)) == -1 else top_k


N = TypeVar("N", int, float)


def _in_range(name: str, value: N, low: N, high: N) -> N:
    if not low <= value <= high:
        raise InvalidRequestError(f"{name}: {show(value)} is not in [{low}, {high}]")
    return value


def _sampling_parameters(value: object) -> dict[str, _Named]:
    """Decode vLLM's `sampling_parameters` into values by our names."""
    text = as_text("sampling_parameters", value, MAX_SAMPLING_BYTES)
    decoded = parse_json("sampling_parameters", text)
    if not isinstance(decoded, dict):
        raise InvalidRequestError(f"sampling_parameters: expected a JSON object, got {show(decoded)}")
    known = {**{name: name for name in _SAMPLING_NAMES}, **_VLLM_NAMES}
    values: dict[str, _Named] = {}
    for key, item in decoded.items():
        if key in known:
            values[known[key]] = (f"sampling_parameters.{key}", item)
        elif key not in _VLLM_FIXED:
            raise InvalidRequestError(
                f"sampling_parameters: unknown key {show(key)}{_suggestion(key, [*known, *_VLLM_FIXED])}"
            )
        else:
            _refuse_other(f"sampling_parameters.{key}", item, _VLLM_FIXED[key])
    return values


def _stop_words(values: _Values, service: ServiceSettings) -> tuple[str, ...]:
    words = values.get("stop_words", partial(_as_texts, service), ())
    for word in words:
        if not word:
            raise InvalidRequestError("stop_words: a stop word is empty")
        if len(word) > service.max_stop_word_chars:
            raise InvalidRequestError(f"stop_words: {len(word)} characters exceed {service.max_stop_word_chars}")
    return words


def _as_log_probs(name: str, value: object) -> bool:
    """vLLM's `logprobs` is a number of alternatives; the sampled token's own is what we have (0 or 1)."""
    if name != "return_log_probs" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _in_range(name, as_int(name, value), 0, 1) >= 0
    return as_bool(name, value)


def _as_texts(service: ServiceSettings, name: str, value: object) -> tuple[str, ...]:
    if name == "stop_words" and isinstance(value, str):
        value = _listed(value, service)
    num_items = value.size if isinstance(value, np.ndarray) else len(value) if isinstance(value, list) else 1
    if num_items > service.max_stop_words:
        raise InvalidRequestError(f"{name}: {num_items} exceed max_stop_words {service.max_stop_words}")
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    items = value if isinstance(value, list) else [value]
    texts = tuple(as_text(name, item, _MAX_BYTES_PER_CHAR * service.max_stop_word_chars) for item in items)
    return () if texts == ("",) else texts  # how TensorRT-LLM's clients say "none"


def _listed(text: str, service: ServiceSettings) -> str | list[str]:
    """Return the strings of a JSON list, which is how a gRPC parameter holds several; any other text as it is."""
    longest = 2 + service.max_stop_words * (_MAX_JSON_CHARS_PER_CHAR * service.max_stop_word_chars + len('"",'))
    if not text.startswith("[") or len(text) > longest:
        return text
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return items if all(isinstance(item, str) for item in items) else text


def _as_stop_token_ids(max_ids: int, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name}: expected a list of token ids, got {show(value)}")
    if len(value) > max_ids:
        raise InvalidRequestError(f"{name}: {len(value)} exceed max_stop_token_ids {max_ids}")
    return tuple(_in_range(name, as_int(name, item), 0, MAX_TOKENS) for item in value)
