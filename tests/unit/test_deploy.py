"""The manifests in deploy/ are valid by the published schemas, and say what the service really has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from sandbox_svc.admission.rates import AdmissionStats
from sandbox_svc.clock import LoopClock
from sandbox_svc.http.server import HttpServer
from sandbox_svc.pool.pool import Pool
from sandbox_svc.settings import VARIABLES, read_settings
from sandbox_svc.telemetry.metrics import FAMILIES, Metrics, Sources

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION = "1.34"
AFTER_DRAIN_SECONDS = 45
"""What an engine that does not answer can cost after the drain."""


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.parent.name}/{document['kind']}/{document['metadata']['name']}", document)
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in documents(path)
    ]


def deployment(way: str) -> dict[str, Any]:
    found: dict[str, Any] = documents(KUBERNETES / way / "deployment.yaml")[0]
    return found


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    pod = document["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize(("name", "document"), manifests(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_manifest_is_valid(name: str, document: dict[str, Any]) -> None:
    # Strict: a field that no version knows is a slip that the API server would drop in silence.
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schemas_do_refuse() -> None:
    broken = deployment("sidecar")
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


@pytest.mark.parametrize("folder", ["base", "sidecar", "remote"])
def test_every_file_is_listed_and_there(folder: str) -> None:
    (kustomization,) = documents(KUBERNETES / folder / "kustomization.yaml")
    listed = {name for name in kustomization["resources"] if not name.startswith("..")}

    assert listed == {path.name for path in (KUBERNETES / folder).glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("way", ["sidecar", "remote"])
def test_kustomize_builds_something_valid(way: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / way)], check=True, capture_output=True, text=True, timeout=60
    )
    found = [document for document in yaml.safe_load_all(built.stdout) if document]

    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"} <= {d["kind"] for d in found}
    for document in found:
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("way", ["sidecar", "remote"])
def test_settings_are_those_of_the_service(way: str) -> None:
    (settings,) = documents(KUBERNETES / "base" / "settings.yaml")
    service = deployment(way)["spec"]["template"]["spec"]["containers"][0]
    environ = settings["data"] | {entry["name"]: entry["value"] for entry in service["env"]}

    assert environ.keys() <= {variable.name for variable in VARIABLES.values()}
    read = read_settings({name: value for name, value in environ.items() if name != "DOCKER_CERT_PATH"})
    (_, pause) = service["lifecycle"]["preStop"]["exec"]["command"]
    grace = deployment(way)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > int(pause) + read.drain_timeout_seconds + AFTER_DRAIN_SECONDS


def test_pods_that_share_an_engine_each_have_room_for_a_container() -> None:
    """One that has none is never ready, and a rollout that waits for it never ends."""
    spec = deployment("remote")["spec"]
    (settings,) = documents(KUBERNETES / "base" / "settings.yaml")
    environ = {entry["name"]: entry["value"] for entry in spec["template"]["spec"]["containers"][0]["env"]}
    pods = spec["replicas"] + spec["strategy"]["rollingUpdate"]["maxSurge"]

    assert int(environ["SANDBOX_MAX_CONTAINERS"]) >= pods * int(settings["data"]["SANDBOX_POOL_SIZE"])


@pytest.mark.parametrize(
    ("own", "group", "parent"),
    [("/", "", "/sandboxes"), ("/kubepods/pod1/c", "/kubepods/pod1/c", "/kubepods/pod1/c/sandboxes")],
)
def test_the_engine_of_a_pod_puts_sandboxes_below_its_own_group(
    tmp_path: Path, own: str, group: str, parent: str
) -> None:
    """On a made-up cgroup v2: a private namespace, and the node's. No more than that the shell lines do what they say."""
    hierarchy = tmp_path / "cgroup"
    (hierarchy / group.lstrip("/")).mkdir(parents=True)
    (hierarchy / "cgroup.controllers").write_text("cpu memory pids\n")
    (hierarchy / group.lstrip("/") / "cgroup.controllers").write_text("cpu memory pids\n")
    (hierarchy / group.lstrip("/") / "cgroup.procs").write_text("1\n7\n")
    (tmp_path / "self").write_text(f"0::{own}\n")
    engine = tmp_path / "dockerd"
    engine.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    engine.chmod(0o755)
    sidecar = next(one for one in containers(deployment("sidecar")) if one["name"] == "engine")
    lines = (
        sidecar["args"][0].replace("/sys/fs/cgroup", str(hierarchy)).replace("/proc/self/cgroup", f"{tmp_path}/self")
    )

    done = subprocess.run(
        [*sidecar["command"], lines],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert f"--cgroup-parent={parent}" in done.stdout.splitlines()
    assert "--group=65532" in done.stdout.splitlines()
    assert (hierarchy / group.lstrip("/") / "init" / "cgroup.procs").read_text().split() == ["1", "7"]
    assert (hierarchy / group.lstrip("/") / "cgroup.subtree_control").read_text() == "+cpu +memory +pids\n"


def test_redis_is_asked_and_not_only_connected_to() -> None:
    (redis,) = containers(documents(KUBERNETES / "base" / "redis.yaml")[0])

    for probe in (redis["readinessProbe"], redis["livenessProbe"]):
        assert probe["exec"]["command"][0] == "redis-cli"
        assert probe["timeoutSeconds"] > 3


def test_both_ways_run_the_same_service() -> None:
    sidecar, remote = (deployment(way)["spec"]["template"]["spec"]["containers"][0] for way in ("sidecar", "remote"))
    for container in (sidecar, remote):
        del container["env"], container["volumeMounts"]

    assert sidecar == remote


def test_only_the_engine_is_privileged() -> None:
    for _, document in manifests():
        if document["kind"] != "Deployment":
            continue
        for container in containers(document):
            if container["name"] == "engine":
                assert container["securityContext"]["privileged"]
                continue
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert "memory" in container["resources"]["limits"]


def test_probes_ask_for_what_they_mean() -> None:
    service = deployment("remote")["spec"]["template"]["spec"]["containers"][0]

    assert service["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert service["livenessProbe"]["httpGet"]["path"] == service["startupProbe"]["httpGet"]["path"] == "/healthz"


def exposed() -> set[str]:
    names = {"process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_cpu_seconds_total"}
    for family in FAMILIES:
        if family.kind == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "count", "sum")}
        else:
            names.add(family.name)
    return names


def queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "sandbox-svc.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yaml")
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_dashboard_and_alerts_ask_for_metrics_that_exist() -> None:
    unquoted = (re.sub(r"\"[^\"]*\"", "", query) for query in queries())
    named = {name for query in unquoted for name in re.findall(r"\b(?:sandbox|process)_[a-z_]+\b", query)}

    assert len(named) > 15
    assert named <= exposed()


async def _nothing(*_: Any) -> None: ...


def test_counters_that_alerts_ask_for_are_there_before_the_first_fault() -> None:
    """Four runs lost between two looks of Prometheus were a new series that never grew, and no alert."""
    metrics = Metrics(("python",))
    metrics.read_from(
        Sources(
            pool=Pool({"python": 1}, clock=LoopClock()),
            is_engine_up=lambda: True,
            connections=lambda: 0,
            shed=lambda: HttpServer(_nothing, max_connections=1).shed,
            tasks=lambda: 0,
            rates=lambda: AdmissionStats(allowed=0, refused=0, local=0, windows=0),
        )
    )
    shown = metrics.render().decode()
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yaml")
    asked = 0

    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        for name, labels in re.findall(r"increase\((sandbox_\w+_total)(?:\{([^}]*)\})?\[", rule["expr"]):
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', labels) or [("", "")]:
                for value in values.split("|"):
                    series = rf'^{name}\{{.*{label}="{value}".*\}} 0\.0$' if label else rf"^{name}.* 0\.0$"
                    assert re.search(series, shown, re.MULTILINE), (rule["alert"], name, value)
                    asked += 1
    assert asked > 5


@pytest.mark.parametrize("query", queries())
def test_figures_that_every_exporter_has_are_asked_of_the_service_alone(query: str) -> None:
    """On a Prometheus with other jobs, anybody's descriptors set off the alert on ours."""
    for labels in re.findall(r"\bprocess_\w+(\{[^}]*\})?", query):
        assert 'job="sandbox-svc"' in labels or 'instance=~"$instance"' in labels


def test_alerts_are_documented() -> None:
    operations = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yaml")

    for group in rules["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['alert']}`" in operations
