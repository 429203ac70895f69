"""The files of deploy/many fit each other, the lock and Dagster."""

import os
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

PROJECT = Path(__file__).parent.parent
MANY = PROJECT / "deploy" / "many"


def read(name: str) -> Any:
    return yaml.safe_load((MANY / name).read_text())


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (PROJECT / name).read_text(), re.MULTILINE))


def test_the_lock_for_many_machines_has_the_versions_of_the_other() -> None:
    one, many = pins("requirements.lock"), pins("requirements-many.lock")
    assert one.items() <= many.items()
    libraries = {many[f"dagster-{name}"] for name in ("celery", "k8s", "postgres")}
    # 1.13.27 and 0.29.27 are of one release
    assert {version.split(".")[-1] for version in libraries} == {one["dagster"].split(".")[-1]}


def test_dagster_accepts_the_settings_of_kubernetes(tmp_path: Path) -> None:
    values = read("kubernetes/values.yaml")
    retention = {name: values["retention"][name]["purgeAfterDays"] for name in ("sensor", "schedule")}
    settings = values["additionalInstanceConfig"] | {
        "retention": {name: {"purge_after_days": days} for name, days in retention.items()},
        "telemetry": values["telemetry"],
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
    ours, theirs = read("dagster.yaml"), values["additionalInstanceConfig"]
    for name in ("poll_interval_seconds", "free_slots_after_run_end_seconds", "max_runtime_seconds"):
        assert ours["run_monitoring"][name] == theirs["run_monitoring"][name]
    assert ours["run_retries"] == theirs["run_retries"]


def test_dagster_accepts_the_settings_of_many_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ.get("CI") is None:
        pytest.importorskip("dagster_celery", reason="the extra many is not installed")
    settings = read("dagster.yaml")
    # the database is there in `make distributed`
    del settings["storage"]
    for name in ("BROKER", "BACKEND"):
        monkeypatch.setenv(f"DAGSTER_CELERY_{name}", "redis://127.0.0.1:1/0")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher: Any = instance.run_launcher
        assert launcher.celery.conf.worker_concurrency == 1
        assert launcher.celery.conf.worker_disable_prefetch is True
        assert launcher.celery.conf.task_acks_late is False
        assert launcher.celery.conf.broker_transport_options["visibility_timeout"] == 86400
        assert instance.run_monitoring_max_runtime_seconds > 0


def test_services_are_published_on_loopback_alone_and_run_without_rights() -> None:
    services = read("compose.yaml")["services"]
    assert services.keys() == {"code", "webserver", "daemon", "worker", "postgres", "redis"}
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:3000:3000"]
    for name in ("code", "webserver", "daemon", "worker"):
        service = services[name]
        assert service["image"] == "crop-assets-many"
        assert service["read_only"] is True
        assert service["user"] == "10001"
        assert service["cap_drop"] == ["ALL"]
    text = (MANY / "compose.yaml").read_text() + (MANY / "kubernetes/values.yaml").read_text()
    assert not re.search(r"(?i)password: +[^\s${]", text)


def test_units_run_the_commands_of_the_page() -> None:
    page = (PROJECT / "docs/many-machines.md").read_text()
    units = sorted((MANY / "systemd").iterdir())
    assert len(units) == 4
    for unit in units:
        (command,) = re.findall(r"^ExecStart=/opt/crop-assets/bin/(.+)$", unit.read_text(), re.MULTILINE)
        assert command.replace("run%i@%H", "run1@$(hostname)") in page
        assert "\nNoNewPrivileges=yes\n" in unit.read_text()
        assert "\nUser=crop\n" in unit.read_text()
