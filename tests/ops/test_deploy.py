"""Dashboard, alerts and manifests name only metrics and options that exist."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from backend.config import parse_config
from backend.launcher.options import make_parser
from backend.wire.metrics import METRICS, Kind
from front.main import parse_settings
from tests.triton.servers import Server, wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "bros.json"
BY_NAME = {metric.name: metric for metric in METRICS}
SUFFIXES = re.compile(r"_(bucket|sum|count)$")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def queries() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from ((f"panel {panel['title']!r}", target["expr"]) for target in panel["targets"])
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


def exported_names(kind: Kind, name: str) -> set[str]:
    """Return the names of a metric's series on the metrics endpoint."""
    return {name} if kind in (Kind.COUNTER, Kind.GAUGE) else {f"{name}_{end}" for end in ("bucket", "sum", "count")}


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_names_metrics_and_label_values_of_the_table(where: str, query: str) -> None:
    selectors = re.findall(r"(bros_\w+)(?:\{([^}]*)\})?", query)
    assert selectors, where
    for series, labels in selectors:
        metric = BY_NAME.get(series) or BY_NAME[SUFFIXES.sub("", series)]
        assert series in exported_names(metric.kind, metric.name)
        for label, value in re.findall(r'(\w+)="(\w+)"', labels):
            assert value in metric.labels[label]


@pytest.mark.triton
def test_every_queried_series_is_on_the_real_endpoint_after_one_request(sim: Server) -> None:
    sim.generate("bros_rt", max_tokens=3)
    wanted = {series for _, query in queries() for series in re.findall(r"bros_\w+", query)}

    def missing() -> set[str]:
        return wanted - set(re.findall(r"^(bros_\w+)", sim.metrics(), re.MULTILINE))

    wait_until(lambda: not missing(), f"the series {missing()}")


def test_the_dashboard_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(DEPLOY / "grafana" / "make_dashboard.py"))
    assert json.loads(DASHBOARD.read_text()) == script["dashboard"]()


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    corners = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(set(corners)) == len(corners)


def test_every_alert_is_shown_to_fire_and_to_rest() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    cases = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    shown = [{case["alertname"]: bool(case["exp_alerts"]) for case in test["alert_rule_test"]} for test in cases]
    assert shown == [dict.fromkeys(alerts, False), dict.fromkeys(alerts, True)]


@needs_promtool
def test_promtool_sees_each_alert_fire_and_rest() -> None:
    subprocess.run(["promtool", "test", "rules", DEPLOY / "prometheus" / "alerts_test.yaml"], check=True)


@needs_promtool
def test_promtool_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, (_, query) in enumerate(queries())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", file], check=True)


def test_the_manifests_start_the_server_with_valid_options_and_configuration() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "bros.yaml").read_text()))
    by_kind = {document["kind"]: document for document in documents}
    container, door = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][:3] == ["python3", "-m", "backend.launcher.serve"]
    assert door["args"][:3] == ["python3", "-m", "front.main"]
    settings = parse_settings(door["args"][3:])
    options = make_parser().parse_args(container["args"][3:])
    parse_config(json.loads(by_kind["ConfigMap"]["data"]["engine.json"]))
    grace_s = by_kind["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    for each, drain_s in ((container, options.drain_timeout_s), (door, settings.drain_timeout_s)):
        assert grace_s > drain_s + int(each["lifecycle"]["preStop"]["exec"]["command"][1])
    assert settings.triton_url.endswith(f":{options.grpc_port}")


def test_the_images_start_the_server_with_valid_options() -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text().replace("\\\n", "")
    commands = [json.loads(each) for each in re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)]
    assert len(commands) == 3
    for command in commands:
        assert command[:3] == ["python3", "-m", "backend.launcher.serve"]
        make_parser().parse_args(command[3:])
