"""Chat templates: Jinja in a sandbox, with what models' templates expect (transformers' chat_template_utils.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from backend.errors import InvalidRequestError, shorten

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja chat template and the special tokens it may name (`bos_token`, …)."""

    source: str
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, object]]) -> str:
        """Return the prompt text that asks for the assistant's next message. Raises InvalidRequestError."""
        try:
            template = _compile(self.source)
            return template.render(messages=messages, add_generation_prompt=True, **self.special_tokens)
        except Exception as error:  # a template may raise anything over messages that its author did not expect
            words = shorten(str(error) or repr(error))
            raise InvalidRequestError(f"messages do not fit the model's chat template: {words}") from error


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML, which prompts must not."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
