"""Dockerfile and Kubernetes manifests: linted, valid by schema, and about things that exist.

Kubernetes' own kinds are checked by `kubernetes-validate`; those of llm-d and of the Gateway API in `test_llm_d.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from backend.wire.metrics import METRICS
from tests.ops import crds

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").rglob("*.yaml"))
AUTOSCALER = ROOT / "deploy" / "kubernetes" / "autoscaler.yaml"
KUBERNETES = "1.37"


def documents() -> list[dict[str, Any]]:
    every = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
    custom = {kind for _, kind in crds.load()}
    return [document for document in every if document["kind"] not in custom]


@pytest.mark.parametrize(
    "document", documents(), ids=lambda document: f"{document['kind']}-{document['metadata']['name']}"
)
def test_a_manifest_is_valid_and_has_no_unknown_field(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schemas_would_refuse_an_unknown_field() -> None:
    document = next(document for document in documents() if document["kind"] == "Deployment")
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_autoscaler_scales_the_deployment_by_a_metric_that_exists() -> None:
    by_kind = {each["kind"]: each for each in documents() if each["metadata"]["name"] == "bros"}
    spec = by_kind["HorizontalPodAutoscaler"]["spec"]
    assert spec["scaleTargetRef"]["name"] == by_kind["Deployment"]["metadata"]["name"]
    comments = [line.removeprefix("#") for line in AUTOSCALER.read_text().splitlines() if line.startswith("#  ")]
    (rule,) = yaml.safe_load("\n".join(comments))
    assert [metric["pods"]["metric"]["name"] for metric in spec["metrics"]] == [rule["name"]["as"]]
    metrics = {metric.name: metric for metric in METRICS}
    named = re.findall(r"\b(bros_\w+)\{([^}]*)\}", rule["seriesQuery"] + rule["metricsQuery"])
    assert named
    for name, matchers in named:
        labels = metrics[name].labels
        for label, value in re.findall(r'(\w+)="(\w+)"', matchers):
            assert value in labels[label], f"{name}: {label}={value} is never exported"


def test_the_dockerfile_passes_the_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
