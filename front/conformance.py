"""The table of docs/openai.md, written from the code: `python -m front.conformance` prints it."""

from __future__ import annotations

import json

from client.openai.bodies import REFUSED, Body, ChatBody, CompletionBody, field_docs
from client.openai.chat import CHAT
from client.openai.completions import COMPLETIONS

BODIES: dict[str, type[Body]] = {CHAT.path: ChatBody, COMPLETIONS.path: CompletionBody}


def table() -> str:
    """Return the table in Markdown: endpoint, field, what we do."""
    rows = [f"| {endpoints} | `{name}` | {words} |" for name, words, endpoints in _rows()]
    return "\n".join(["| endpoint | field | what we do |", "|---|---|---|", *rows])


def _rows() -> list[tuple[str, str, str]]:
    """Return name, words and endpoints of every field; one row where both endpoints do the same."""
    by_field: dict[tuple[str, str], list[str]] = {}
    for path, body_type in BODIES.items():
        for name, words in (field_docs(body_type) | _refusals(body_type)).items():
            by_field.setdefault((name, words), []).append(path.removeprefix("/v1/").split("/")[0])
    names = {"chat completions": "both"}
    return [(name, words, names.get(" ".join(found), found[0])) for (name, words), found in by_field.items()]


def _refusals(body_type: type[Body]) -> dict[str, str]:
    return {
        name: f"refused, but for {_listed(refused.harmless)}: {refused.why}"
        for name, refused in REFUSED[body_type].items()
    }


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(f"`{json.dumps(value)}`" for value in (None, *values))


if __name__ == "__main__":
    print(table())
