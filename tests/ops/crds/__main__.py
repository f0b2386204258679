"""Compare with the CRDs themselves: `python -m tests.ops.crds FILE...`, each a CustomResourceDefinition in YAML.

Every manifest must fit the CRD of its kind without a field that a cluster would drop, and each of our schemas must say
nothing that its CRD does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.ops.crds import Schema, check, load

_MANIFESTS = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes" / "llm-d"
_EQUAL = ("type", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")


def main(paths: list[str]) -> int:
    """Print what was compared and what differs; return the exit status."""
    documents = [document for path in _MANIFESTS.glob("*.yaml") for document in yaml.safe_load_all(path.read_text())]
    ours, problems = load(), 0
    for path in paths:
        for (version, kind), spec in _specs(yaml.safe_load(Path(path).read_text())):
            if (version, kind) not in ours:
                continue
            mine = [each for each in documents if (each["apiVersion"], each["kind"]) == (version, kind)]
            for document in mine:
                check(document, {"spec": spec})
            found = list(differences(ours[version, kind]["spec"], spec, "spec"))
            print(f"{kind} {version}: {len(mine)} manifests fit; {len(found)} differences", *found, sep="\n  ")
            problems += len(found) + (not mine)
    return int(problems > 0)


def differences(ours: Schema, theirs: Schema, where: str) -> Iterator[str]:
    """Yield where our schema is not a part of the CRD's."""
    for key in _EQUAL:
        default = 0 if key.startswith("min") else None  # `minLength: 0` says nothing
        if ours.get(key, default) != theirs.get(key, default):
            yield f"{where}: {key} is {ours.get(key)!r} here, {theirs.get(key)!r} there"
    if not set(ours.get("enum", [])) <= set(theirs.get("enum", ours.get("enum", []))):
        yield f"{where}: enum {ours['enum']!r} here, {theirs['enum']!r} there"
    for name, each in ours.get("properties", {}).items():
        if name in theirs.get("properties", {}):
            yield from differences(each, theirs["properties"][name], f"{where}.{name}")
        else:
            yield f"{where}.{name}: not there"
    for key in ("items", "additionalProperties"):
        if key in ours:
            yield from differences(ours[key], theirs.get(key, {}), f"{where}[]")


def _specs(crd: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Schema]]:
    spec = crd["spec"]
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), schema


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
