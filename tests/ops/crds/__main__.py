"""Cut a CustomResourceDefinition down to what a test reads.

    python -m tests.ops.crds SOURCE < CRD > tests/ops/crds/KIND.yaml

SOURCE says where it is from: repository, path, version and licence. Only the stored version stays, without
descriptions.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml

_PROSE = {"description"}
_NOTE = """\
# {source}
# Cut by `python -m tests.ops.crds`: descriptions, status and versions that are not stored are left out.
"""


def main() -> int:
    """Read a definition from stdin, write the rest of it to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ops.crds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="repository, path, version and licence")
    source = parser.parse_args().source
    crd = yaml.safe_load(sys.stdin)
    if not isinstance(crd, dict) or crd.get("kind") != "CustomResourceDefinition":
        parser.error("standard input has no CustomResourceDefinition")
    for version in crd["spec"]["versions"]:
        version["schema"]["openAPIV3Schema"] = without_prose(version["schema"]["openAPIV3Schema"])
        version["schema"]["openAPIV3Schema"]["properties"].pop("status", None)
    rest = {
        "apiVersion": crd["apiVersion"],
        "kind": crd["kind"],
        "metadata": crd["metadata"],
        "spec": {
            "group": crd["spec"]["group"],
            "names": crd["spec"]["names"],
            "versions": [
                {"name": version["name"], "served": True, "storage": True, "schema": version["schema"]}
                for version in crd["spec"]["versions"]
                if version["storage"]
            ],
        },
    }
    sys.stdout.write(_NOTE.format(source=source) + yaml.safe_dump(rest, sort_keys=False, width=120))
    return 0


def without_prose(schema: Any, is_named: bool = False) -> Any:
    """Return `schema` without the texts for people. is_named: its keys are names of fields."""
    if isinstance(schema, list):
        return [without_prose(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_prose(value, not is_named and key == "properties")
        for key, value in schema.items()
        if is_named or key not in _PROSE
    }


if __name__ == "__main__":
    sys.exit(main())
