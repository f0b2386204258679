"""Chat templates: Jinja in a sandbox, with the functions that models' templates expect.

The environment equals that of transformers' `chat_template_utils.py`; a test compares them. Importing that module
takes seconds, and needs a library that other engines do without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from backend.core.errors import InvalidRequestError, shorten

if TYPE_CHECKING:
    import jinja2

# What a template says of calls that the front door knows: JSON in <tool_call> (Hermes, Qwen), or Llama 3's. Qwen3-Coder
# and GLM put XML into <tool_call>.
_JSON_CALL = re.compile(r"""\{\s*\\*["'](name|arguments)\\*["']\s*:""")
_XML_CALLS = ("<function=", "<arg_key>")
_LLAMA_CALL = '"parameters": dictionary'
DEFAULT, TOOL_USE = "default", "tool_use"  # a model may have several templates by name; the library asks for these two
# Names under which a message may bring its reasoning; templates read the first, gpt-oss's the second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja chat template and the special tokens it may name (`bos_token`, …)."""

    source: str
    special_tokens: Mapping[str, str]

    @property
    def has_tools(self) -> bool:
        """Whether it shows tools, and has their calls written in a form that is known."""
        source = self.source
        is_xml = any(word in source for word in _XML_CALLS)
        is_json = "<tool_call>" in source and not is_xml and _JSON_CALL.search(source) is not None
        return "tools" in source and (is_json or _LLAMA_CALL in source)

    def render(self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()) -> str:
        """Return the prompt text that asks for the assistant's next message. Raises InvalidRequestError."""
        if not self.has_tools:
            self._refuse_tools(messages, tools)
        try:
            template = _compile(self.source)
            return template.render(
                **self.special_tokens,
                messages=[_with_reasoning(message) for message in messages],
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template may raise anything over messages that its author did not expect
            words = shorten(str(error) or repr(error))
            raise InvalidRequestError(f"messages do not fit the model's chat template: {words}") from error

    def _refuse_tools(self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]) -> None:
        why = "the model's chat template shows none in a form that is known here"
        if tools:
            raise InvalidRequestError(f"tools: {why}")
        if any(message.get("tool_calls") or message.get("role") == "tool" for message in messages):
            raise InvalidRequestError(f"messages: they hold calls of tools; {why}")


def choose_template(templates: Mapping[str, ChatTemplate], has_tools: bool) -> ChatTemplate:
    """Return the template of a request, as the library's `get_chat_template` does: tools have their own where there is
    one. Raises InvalidRequestError where there is none."""
    if has_tools and TOOL_USE in templates:
        return templates[TOOL_USE]
    if DEFAULT in templates:
        return templates[DEFAULT]
    names = ", ".join(map(shorten, sorted(templates)))
    why = f"templates named {names}, but none named {DEFAULT!r}" if names else "no chat template"
    raise InvalidRequestError(f"the model has {why}: send a prompt instead of messages")


def _with_reasoning(message: object) -> object:
    """Give a message's reasoning the names that templates read."""
    if not isinstance(message, Mapping):
        return message
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = [_generation_tag(), loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _namespace_class(),
    }
    return environment.from_string(source)


def _generation_tag() -> type[jinja2.ext.Extension]:
    """Return an extension whose `{% generation %}` renders what it holds; trainers mark the assistant's text by it."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationTag


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, which prompts must not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


class _Dict:
    """A `dict` whose attributes lead nowhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _namespace_class() -> type[jinja2.utils.Namespace]:
    """Return Jinja's namespace, closed to names that would reach Python's own."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def require_plain(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a chat template's namespace takes no name like {name!r}")

    class PlainNamespace(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            values = dict(*rest, **kwargs)
            for name in values:
                require_plain(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            require_plain(name)
            Namespace.__setitem__(self, name, value)

    return PlainNamespace
