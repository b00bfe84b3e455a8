"""docker/compose.yaml and docker/prometheus.yml: hardened, on loopback, and in agreement with the service."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import live
import pytest
from fake_runtime import FakeRuntime

from service.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker" / "compose.yaml"
PROMETHEUS = ROOT / "docker" / "prometheus.yml"


def parsed(path: Path) -> Any:
    """A YAML file."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load(path.read_text())


def test_every_setting_exists() -> None:
    """And the values are taken; read without a YAML parser, so that it runs everywhere."""
    given = re.findall(r"^ +AFT_([A-Z_]+): (.+)$", COMPOSE.read_text(), re.MULTILINE)
    assert given
    settings = Settings(**{name.lower(): value.strip('"') for name, value in given})
    for name, _ in given:
        assert name.lower() in Settings.model_fields
    grace = re.search(r"^ +stop_grace_period: (\d+)s\b", COMPOSE.read_text(), re.MULTILINE)
    assert grace is not None
    assert int(grace[1]) > settings.drain_seconds + 5


def test_services_are_confined() -> None:
    """No writable root, no capabilities, no new privileges, ports on loopback only, images pinned or built here."""
    content = parsed(COMPOSE)
    assert set(content["services"]) == {"aft", "prometheus"}
    for service in content["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert not {"privileged", "user", "healthcheck", "network_mode"} & set(service)  # as the image has them
    aft, prometheus = content["services"]["aft"], content["services"]["prometheus"]
    assert aft["init"] is True
    context = (COMPOSE.parent / aft["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / "Dockerfile").exists()
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", prometheus["image"])
    mounted, data = (volume.split(":") for volume in prometheus["volumes"])
    assert (COMPOSE.parent / mounted[0]).resolve() == PROMETHEUS
    assert mounted[2] == "ro"
    assert data[0] in content["volumes"]


def test_prometheus_scrapes_the_service() -> None:
    """By its name and port in compose; its metrics are where Prometheus looks."""
    (job,) = parsed(PROMETHEUS)["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["aft:8000"]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    port = re.search(r"AFT_PORT=(\d+)", (ROOT / "Dockerfile").read_text())
    assert port is not None
    assert port[1] == "8000"
    assert parsed(COMPOSE)["services"]["aft"]["ports"] == ["127.0.0.1:8000:8000"]


def test_a_scrape_by_the_name_in_compose_is_answered() -> None:
    """The check of the Host header that protects a service without keys lets it through."""
    with live.serve_app(live.fake_loader(FakeRuntime())) as client:
        answer = client.http.get("/metrics", headers={"Host": "aft:8000"})
    assert answer.status_code == 200
    assert "aft_build_info" in answer.text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: make system-packages")
def test_promtool_accepts_the_configuration() -> None:
    """Prometheus' own checker."""
    done = subprocess.run(["promtool", "check", "config", str(PROMETHEUS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
