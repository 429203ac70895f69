"""The run launcher for Celery, with a real worker and a real Redis."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import dagster as dg
import pytest
import yaml

from crop_assets_tests.background import Background, background
from resources.loopback import free_port


def _not_installed(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what, allow_module_level=True)


try:
    from crop_assets.celery_launcher import LOOKS, TASK_ID, CeleryWorkerRunLauncher
    from crop_assets.dagster_internals import WorkerStatus
except ImportError as missing:
    _not_installed(f"the extra many is not installed: {missing}")
if shutil.which("redis-server") is None:
    _not_installed("there is no redis-server, which is Debian's package of that name")

HOST = "tiles@worker"
TASKS = """
import time
from crop_assets.celery_worker import app

@app.task(name="wait", track_started=True)
def wait(seconds):
    time.sleep(seconds)
"""
PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Setup:
    """A DAGSTER_HOME whose launcher uses a Redis of its own, and a worker that can also just wait."""

    folder: Path
    instance: dg.DagsterInstance
    redis: Background

    @property
    def launcher(self) -> CeleryWorkerRunLauncher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, CeleryWorkerRunLauncher)
        return launcher

    @contextlib.contextmanager
    def worker(self) -> Iterator[Background]:
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-Q", "dagster", "-n", HOST]
        path = os.pathsep.join([str(self.folder), str(PROJECT)])
        variables = {**os.environ, "DAGSTER_HOME": str(self.folder), "PYTHONPATH": path}
        with background(command, self.folder / "worker.log", variables, start_new_session=True) as running:
            try:
                running.wait_for("the worker", lambda: self.launcher.celery.control.inspect(timeout=1).ping())
                yield running
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.process.pid, signal.SIGKILL)

    def started_run(self, running: Background) -> dg.DagsterRun:
        """A run that counts as started, with a task that the worker is at."""
        task = self.launcher.celery.send_task("wait", [600], queue="dagster")
        running.wait_for("the task", lambda: task.state == "STARTED")
        return self.run({TASK_ID: task.id})

    def run(self, tags: dict[str, str]) -> dg.DagsterRun:
        @dg.job
        def nothing() -> None: ...

        return self.instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED)

    def looks(self, run: dg.DagsterRun, count: int) -> list[Any]:
        return [self.launcher.check_run_worker_health(run).status for _ in range(count)]


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    launcher = {
        "module": "crop_assets.celery_launcher",
        "class": "CeleryWorkerRunLauncher",
        "config": {"broker": f"{url}/0", "backend": f"{url}/1"},
    }
    settings = {"run_launcher": launcher, "telemetry": {"enabled": False}, "nux": {"enabled": False}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "tasks.py").write_text(TASKS)
    command = [
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    with (
        background(command, tmp_path / "redis.log") as redis,
        dg.DagsterInstance.from_config(str(tmp_path)) as instance,
    ):
        redis.wait_for("Redis", lambda: "Ready to accept connections" in redis.output)
        yield Setup(tmp_path, instance, redis)
        # Celery's app keeps connections, and an unclosed socket would be a warning
        launched: Any = instance.run_launcher
        launched.celery.close()


RUNNING, FAILED = WorkerStatus.RUNNING, WorkerStatus.FAILED


def until(found: Callable[[], object]) -> None:
    while not found():
        time.sleep(0.1)


def test_a_killed_worker_fails_its_run_at_the_third_look(setup: Setup) -> None:
    with setup.worker() as running:
        run = setup.started_run(running)
        assert setup.looks(run, LOOKS + 1) == [RUNNING] * (LOOKS + 1)
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    assert setup.looks(run, LOOKS - 1) == [RUNNING] * (LOOKS - 1)
    last = setup.launcher.check_run_worker_health(run)
    assert last.status == FAILED
    assert last.msg == f"worker {HOST} does not answer, at 3 looks in a row"


def test_a_worker_that_started_again_does_not_have_the_run(setup: Setup) -> None:
    with setup.worker() as running:
        run = setup.started_run(running)
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    with setup.worker() as running:
        other = setup.started_run(running)
        assert setup.looks(run, LOOKS) == [RUNNING] * (LOOKS - 1) + [FAILED]
        assert setup.looks(other, LOOKS) == [RUNNING] * LOOKS
    # the result backend still takes it for started, as Dagster's own launcher would
    assert setup.launcher.celery.AsyncResult(run.tags[TASK_ID]).state == "STARTED"


def test_only_looks_in_a_row_count(setup: Setup) -> None:
    with setup.worker() as running:
        run = setup.started_run(running)
        for _ in range(2):
            os.killpg(running.process.pid, signal.SIGSTOP)
            assert setup.looks(run, LOOKS - 1) == [RUNNING] * (LOOKS - 1)
            os.killpg(running.process.pid, signal.SIGCONT)
            assert setup.looks(run, 1) == [RUNNING]


def test_a_broker_that_is_away_says_nothing_about_the_worker(setup: Setup) -> None:
    with setup.worker() as running:
        run = setup.started_run(running)
        setup.redis.process.kill()
        setup.redis.process.wait()
        assert setup.looks(run, LOOKS + 1) == [RUNNING] * (LOOKS + 1)
        assert "the broker does not answer" in str(setup.launcher.check_run_worker_health(run).msg)


def test_a_task_that_ended_without_the_run_fails_it(setup: Setup) -> None:
    with setup.worker() as running:
        task = setup.launcher.celery.send_task("wait", [0], queue="dagster")
        running.wait_for("the end of the task", lambda: task.state == "SUCCESS")
        run = setup.run({TASK_ID: task.id})
        assert setup.looks(run, LOOKS) == [RUNNING] * (LOOKS - 1) + [FAILED]


def test_a_run_without_a_task_fails_at_the_third_look(setup: Setup) -> None:
    run = setup.run({})
    assert setup.looks(run, LOOKS) == [RUNNING] * (LOOKS - 1) + [FAILED]
    assert setup.launcher.terminate(run.run_id) is False
    assert setup.launcher.get_run_worker_debug_info(run) is None
    assert setup.launcher.supports_resume_run is False


def test_terminate_ends_the_task_and_the_run_counts_as_canceling(setup: Setup) -> None:
    with setup.worker() as running:
        run = setup.started_run(running)
        assert setup.launcher.terminate(run.run_id) is True
        stored = setup.instance.get_run_by_id(run.run_id)
        assert stored
        assert stored.status == dg.DagsterRunStatus.CANCELING
        until(lambda: setup.launcher.celery.control.inspect([HOST], timeout=3).active() == {HOST: []})
        # the worker goes on
        other = setup.started_run(running)
        assert setup.looks(other, LOOKS) == [RUNNING] * LOOKS


def test_the_app_takes_one_run_at_a_time_and_none_ahead(setup: Setup) -> None:
    with setup.worker() as running:
        first = setup.started_run(running)
        second = setup.launcher.celery.send_task("wait", [0], queue="dagster")
        assert setup.looks(first, LOOKS) == [RUNNING] * LOOKS
        assert second.state == "PENDING"
        assert setup.launcher.celery.control.inspect([HOST], timeout=3).reserved() == {HOST: []}


def test_a_worker_needs_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    done = subprocess.run(
        [sys.executable, "-c", "import crop_assets.celery_worker"],
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the run launcher in dagster.yaml is DefaultRunLauncher; a worker needs" in done.stderr
