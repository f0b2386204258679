"""`response_format`: what the answer of a chat conforms to, as a JSON schema. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from client.openai.errors import ApiError

ANY_OBJECT: dict[str, Any] = {"type": "object"}


class NamedSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A schema as OpenAI wraps it. Name and description have no effect, nor has `strict`: a schema is always kept."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Meta(max_length=4096)] | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


def schema_of(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the schema that an answer conforms to; None where it is free. Raises ApiError."""
    if wanted is None:
        return None
    if (wanted.type == "json_schema") is (wanted.json_schema is None):
        words = "missing" if wanted.json_schema is None else "only with type json_schema"
        raise ApiError(f"response_format.json_schema: {words}", param="response_format")
    if wanted.json_schema is not None:
        return ANY_OBJECT if wanted.json_schema.schema is None else wanted.json_schema.schema
    return ANY_OBJECT if wanted.type == "json_object" else None
