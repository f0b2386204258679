"""Schemas of the custom resources in `deploy/kubernetes/llm-d/`: the CRDs themselves, and one of our own for a file.

A field that a schema does not name is an error, though a cluster would only drop it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_FOLDER = Path(__file__).parent
_CRD = "CustomResourceDefinition"
_ENVELOPE = ("apiVersion", "kind", "metadata")
Schema = dict[str, Any]


@cache
def load() -> Mapping[tuple[str, str], Schema]:
    """Return the files of this folder, by API version and kind."""
    files = [yaml.load(path.read_text(), yaml.CSafeLoader) for path in sorted(_FOLDER.glob("*.yaml"))]
    return {_name(file): file for file in files}


def _name(file: Schema) -> tuple[str, str]:
    if file["kind"] != _CRD:
        return f"{file['group']}/{file['version']}", file["kind"]
    (version,) = file["spec"]["versions"]
    return f"{file['spec']['group']}/{version['name']}", file["spec"]["names"]["kind"]


def validate(document: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError where `document` breaks its schema, and KeyError where there is none."""
    file = load()[document["apiVersion"], document["kind"]]
    if file["kind"] == _CRD:
        (version,) = file["spec"]["versions"]
        schema = version["schema"]["openAPIV3Schema"]
        check(document, {"spec": schema["properties"]["spec"]}, required=["metadata", "spec"])
        return
    check(document, file["body"], required=["plugins", "schedulingProfiles"])
    for plugin in document["plugins"]:
        if plugin["type"] not in file["plugins"]:
            raise jsonschema.ValidationError(f"plugin type {plugin['type']!r} is not known")
        check(plugin.get("parameters", {}), file["plugins"][plugin["type"]], envelope=())


def check(
    document: object, properties: Schema, required: list[str] | None = None, envelope: tuple[str, ...] = _ENVELOPE
) -> None:
    """Raise jsonschema.ValidationError where `document` is no object of these properties, and no others."""
    schema = {"type": "object", "required": required or [], "properties": {key: {} for key in envelope} | properties}
    jsonschema.Draft202012Validator(closed(schema)).validate(document)


def closed(schema: Schema) -> Schema:
    """Return `schema` with every object closed that names its properties."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: closed(each) for name, each in schema["properties"].items()}
        result.setdefault("additionalProperties", False)
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result
