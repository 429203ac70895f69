"""Runs on many machines: a run launcher for Celery that asks the worker whether it still has the run.

The launcher of dagster-celery asks the result backend, which never learns of a killed worker: the run stays STARTED for
ever. https://github.com/dagster-io/dagster/pull/33493 (crash detection, open) would make this module superfluous if it
can fail a run instead of resuming it; https://github.com/dagster-io/dagster/issues/32915 (open) asks for documentation.

A worker is `celery -A crop_assets.celery_worker worker`. docs/many-machines.md has the setup. This module and that of
the worker need the extra `many`; nothing else imports them.
"""

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg
from celery.exceptions import CeleryError
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG as TASK_ID
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from crop_assets.dagster_internals import CheckRunHealthResult, WorkerStatus

LOOKS = 3
"""So many looks in a row find no worker with the run before the run fails."""
ANSWER_SECONDS = 3.0
"""A worker answers from its main process, also during a run, in milliseconds."""
SETTINGS: Mapping[str, Any] = {
    # a run takes all cores; one fetched ahead would wait behind it while another worker is idle
    "worker_concurrency": 1,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # a run of a dead worker is launched again by Dagster's run retries; Celery would deliver its task twice
    "task_acks_late": False,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {
        # Redis delivers a task again that waits for longer than this, by default an hour
        "visibility_timeout": 86400,
        # a broker behind a broken link must not hold up the daemon; workers wait for tasks for less than that
        "socket_connect_timeout": 10,
        "socket_timeout": 60,
        "max_retries": 3,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
}
"""Settings of the Celery app, which `config_source` in dagster.yaml overrides."""
_log = logging.getLogger(__name__)
_BROKER_IS_AWAY = (CeleryError, KombuError, OperationalError, RedisError, OSError)


class CeleryWorkerRunLauncher(CeleryRunLauncher):
    """Launches runs as Celery tasks, and fails a run if its worker is gone.

    Run monitoring calls `check_run_worker_health` every `poll_interval_seconds`.
    """

    def __init__(self, config_source: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(config_source={**SETTINGS, **(config_source or {})}, **arguments)
        self._misses: dict[str, int] = {}

    @property
    def supports_resume_run(self) -> bool:
        """A run of tiles has one step, and a retry reuses what it finished."""
        return False

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED at the third look in a row without an answer of the run's worker, or without the run's task there.

        If the broker does not answer, nothing is known about the worker, and the run counts as running.
        """
        task_id = run.tags.get(TASK_ID)
        if task_id is None:
            # launch_run sets the tag after it has sent the task
            return self._missed(run, "it has no Celery task")
        try:
            host = self._host(task_id)
            answers = self.celery.control.inspect(
                destination=[host] if host else None, timeout=ANSWER_SECONDS
            ).active()
        except _BROKER_IS_AWAY as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"the broker does not answer: {error}")
        if any(task["id"] == task_id for tasks in (answers or {}).values() for task in tasks):
            self._misses.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if host and not answers:
            return self._missed(run, f"worker {host} does not answer")
        return self._missed(run, f"{f'worker {host}' if host else 'no worker'} has the run's task {task_id}")

    def terminate(self, run_id: str) -> bool:
        """Kill the worker's process. Run monitoring cancels the run after `cancel_timeout_seconds`.

        A run that did not count as canceling would be failed by the next looks, and retried.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or TASK_ID not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        return bool(super().terminate(run_id))

    def get_run_worker_debug_info(
        self, run: dg.DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        if TASK_ID not in run.tags:
            return None
        try:
            host = self._host(run.tags[TASK_ID])
        except _BROKER_IS_AWAY:
            host = None
        return f"Celery task {run.tags[TASK_ID]}, worker {host or 'unknown'}"

    def _host(self, task_id: str) -> str | None:
        """The worker that took the task, or None if the backend does not know it: before that, and after a day."""
        info = self.celery.AsyncResult(task_id).info
        return info.get("hostname") if isinstance(info, dict) else None

    def _missed(self, run: dg.DagsterRun, why: str) -> CheckRunHealthResult:
        looks = self._misses[run.run_id] = self._misses.get(run.run_id, 0) + 1
        _log.warning(f"run {run.run_id}: {why} (look {looks} of {LOOKS})")
        if looks < LOOKS:
            return CheckRunHealthResult(WorkerStatus.RUNNING, why)
        del self._misses[run.run_id]
        return CheckRunHealthResult(WorkerStatus.FAILED, f"{why}, at {LOOKS} looks in a row")
