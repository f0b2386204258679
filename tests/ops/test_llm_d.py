"""The manifests for llm-d's router: valid by schema, and about ports, headers, metrics and pods that exist."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from backend.wire.metrics import METRICS, Kind
from front import gauges
from front.headers import CLASS_HEADER
from tests.ops import crds

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OBJECTIVE_HEADER = "x-llm-d-inference-objective"
Document = dict[str, Any]


def documents(pattern: str = "llm-d/*.yaml") -> list[Document]:
    return [each for path in sorted(FOLDER.glob(pattern)) for each in yaml.safe_load_all(path.read_text())]


def custom() -> list[Document]:
    kinds = {kind for _, kind in crds.load()}
    return [each for each in documents() if each["kind"] in kinds] + [picker()]


def picker() -> Document:
    (config_map,) = [each for each in documents() if each["kind"] == "ConfigMap"]
    return dict(yaml.safe_load(config_map["data"]["picker.yaml"]))


def one(kind: str, pattern: str = "llm-d/*.yaml") -> Document:
    (found,) = [each for each in documents(pattern) if each["kind"] == kind]
    return found


def name_of(document: Document) -> str:
    return f"{document['kind']}-{document.get('metadata', {}).get('name', 'file')}"


@pytest.mark.parametrize("document", custom(), ids=name_of)
def test_a_custom_resource_fits_its_schema(document: Document) -> None:
    crds.validate(document)


def test_every_kind_of_the_schemas_is_used() -> None:
    assert {(each["apiVersion"], each["kind"]) for each in custom()} == set(crds.load())


def set_wrong(path: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = document
        for part in parents:
            node = node[part]
        assert last in node if isinstance(node, dict) else last < len(node), path
        node[last] = value

    return change


def add(path: str, name: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        node: Any = document
        for part in path.split("."):
            node = node[int(part) if part.isdigit() else part]
        node[name] = 1

    return change


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("InferencePool", add("spec", "targetPort")),
        ("InferencePool", add("spec.endpointPickerRef.port", "nmuber")),
        ("InferencePool", set_wrong("spec.targetPorts.0.number", "8080")),
        ("InferencePool", set_wrong("spec.endpointPickerRef.failureMode", "FailSafe")),
        ("InferencePool", set_wrong("spec.selector", {})),
        ("InferenceObjective", add("spec", "prioritty")),
        ("InferenceObjective", set_wrong("spec.priority", "10")),
        ("InferenceObjective", set_wrong("apiVersion", "llm-d.ai/v1")),
        ("HTTPRoute", add("spec.rules.0", "timeout")),
        ("HTTPRoute", add("spec.rules.0.matches.0.path", "kind")),
        ("HTTPRoute", set_wrong("spec.rules.0.timeouts.request", 600)),
        ("HTTPRoute", set_wrong("spec.rules.0.backendRefs.0.name", "")),
        ("EndpointPickerConfig", add("flowControl", "defaultTTL")),
        ("EndpointPickerConfig", add("plugins.1.parameters.engineConfigs.0", "waitingSpec")),
        ("EndpointPickerConfig", set_wrong("plugins.2.type", "queue-score")),
        ("EndpointPickerConfig", set_wrong("flowControl.priorityBands.0.priority", "high")),
        ("EndpointPickerConfig", set_wrong("featureGates.0", "flowcontrol")),
    ],
)
def test_a_misspelt_field_and_a_wrong_type_are_refused(kind: str, change: Callable[[Document], None]) -> None:
    document = copy.deepcopy(next(each for each in custom() if each["kind"] == kind))
    crds.validate(document)
    change(document)
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        crds.validate(document)


def test_the_picker_reads_the_gauges_that_the_pods_front_door_answers_with() -> None:
    by_type = {plugin["type"]: plugin for plugin in picker()["plugins"]}
    extractor = by_type["core-metrics-extractor"]["parameters"]
    (engine,) = extractor["engineConfigs"]
    assert extractor["defaultEngine"] == engine["name"]
    named = [engine["queuedRequestsSpec"], engine["runningRequestsSpec"], engine["kvUsageSpec"]]
    assert named == [gauges.WAITING, gauges.RUNNING, gauges.KV_USED]
    table = {metric.name: metric for metric in METRICS}
    assert [(table[name].kind, dict(table[name].labels)) for name in named] == [(Kind.GAUGE, {})] * 3
    labels = one("Deployment", "bros.yaml")["spec"]["template"]["metadata"]["labels"]
    assert labels["llm-d.ai/engine-type"] == engine["name"]


def test_every_plugin_that_is_referred_to_is_declared() -> None:
    config = picker()
    declared = {plugin.get("name", plugin["type"]) for plugin in config["plugins"]}
    flow = config["flowControl"]
    referred = {each["pluginRef"] for profile in config["schedulingProfiles"] for each in profile["plugins"]}
    referred |= {flow["saturationDetector"]["pluginRef"], flow["usageLimitPolicyPluginRef"]}
    referred |= {band["orderingPolicyRef"] for band in flow["priorityBands"]}
    assert referred <= declared
    assert declared - referred == {"metrics-data-source", "core-metrics-extractor"}


def test_the_pool_selects_the_pods_and_the_port_of_their_front_door() -> None:
    pool, template = one("InferencePool")["spec"], one("Deployment", "bros.yaml")["spec"]["template"]
    assert pool["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for each in template["spec"]["containers"] for port in each["ports"]}
    assert [port["number"] for port in pool["targetPorts"]] == [ports["openai"]]


def test_the_pools_picker_is_a_service_of_the_pickers_pods() -> None:
    pool, service, deployment = one("InferencePool"), one("Service"), one("Deployment")
    reference = pool["spec"]["endpointPickerRef"]
    assert reference["name"] == service["metadata"]["name"]
    (port,) = [port for port in service["spec"]["ports"] if port["port"] == reference["port"]["number"]]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] in {each["name"] for each in container["ports"]}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert f"--pool-name={pool['metadata']['name']}" in container["args"]
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == one("ServiceAccount")["metadata"]["name"]


def test_the_objectives_are_the_classes_and_real_time_is_never_evicted() -> None:
    objectives = {
        each["metadata"]["name"]: each["spec"] for each in documents() if each["kind"] == "InferenceObjective"
    }
    assert set(objectives) == {"rt", "be"}
    assert objectives["rt"]["priority"] > 0 > objectives["be"]["priority"]
    assert {spec["poolRef"]["name"] for spec in objectives.values()} == {one("InferencePool")["metadata"]["name"]}
    bands = {band["priority"] for band in picker()["flowControl"]["priorityBands"]}
    assert bands == {spec["priority"] for spec in objectives.values()}


def test_the_route_turns_an_objective_into_our_class_header() -> None:
    *by_objective, other = one("HTTPRoute")["spec"]["rules"]
    chosen = {}
    for rule in by_objective:
        (objective,) = {header["value"] for match in rule["matches"] for header in match["headers"]}
        assert {header["name"] for match in rule["matches"] for header in match["headers"]} == {OBJECTIVE_HEADER}
        (filter_,) = rule["filters"]
        (header,) = filter_["requestHeaderModifier"]["set"]
        assert header["name"] == CLASS_HEADER
        chosen[objective] = header["value"]
    assert chosen == {"rt": "rt", "be": "be"}
    assert "filters" not in other
    backends = {reference["name"] for rule in (*by_objective, other) for reference in rule["backendRefs"]}
    assert backends == {one("InferencePool")["metadata"]["name"]}
