"""All uses of Dagster's private API, each with the reason and the issue that asks for a public one.

No other module imports `dagster._…`, which a test checks, and pyproject.toml has an upper bound for Dagster's version.
When raising it, run the tests of this module's callers: demo, sensors, `crop-assets ui`.
"""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.execution.job_execution_result import JobExecutionResult
from dagster._core.instance import InstanceRef

# a run launcher's answers about a run; launchers other than Dagster's own have no public name for them
from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
from dagster._core.launcher import WorkerStatus as WorkerStatus
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, MAX_RETRIES_TAG, WILL_RETRY_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.utils import make_new_backfill_id, make_new_run_id
from dagster._daemon.controller import all_daemons_live

from resources.file_system import lock, no_follow, private_folder

DAEMON = "dagster._daemon"
"""The module of `dagster-daemon`, to run it with this interpreter wherever its scripts are."""
_IN_PROCESS = "in_process"
"""Folder in DAGSTER_HOME with a locked file for each run of `execute_here`."""
_OPENING = ".opening"
"""File in DAGSTER_HOME that is locked while a process makes its databases."""
_NO_OUTPUT_FILES = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}


def _subset(
    assets: Iterable[str], partitions_def: dg.PartitionsDefinition, keys: Collection[str]
) -> AssetGraphSubset:
    partitions = partitions_def.subset_with_partition_keys(keys)
    return AssetGraphSubset(  # type: ignore[call-arg]
        partitions_subsets_by_asset_key={dg.AssetKey(name): partitions for name in assets},
        non_partitioned_asset_keys=set(),
    )


def request_backfill(
    assets: Iterable[str],
    partitions_def: dg.PartitionsDefinition,
    keys: Collection[str],
    tags: Mapping[str, str],
) -> dg.RunRequest:
    """A backfill of assets over partitions, which the daemon launches like one from the UI.

    A sensor can only request runs, but Dagster's own automation sensors launch backfills in this way
    (https://github.com/dagster-io/dagster/issues/27759).
    """
    return dg.RunRequest.for_asset_graph_subset(_subset(assets, partitions_def, keys), dict(tags))


def instance_of_terminal(home: Path) -> dg.DagsterInstance:
    """The instance of a DAGSTER_HOME, for runs whose output goes to the terminal.

    `DagsterInstance.from_config` takes no overrides, and the processes that copy the output of a run to files print
    tracebacks at Ctrl-C. Only one process at a time makes the databases of a new home: two of them would stamp the same
    database twice, and no later process could open it ("more than one head present").
    """
    with open(home / _OPENING, "wb", opener=no_follow) as file:
        lock(file)
        instance = dg.DagsterInstance.from_ref(
            InstanceRef.from_dir(str(home), overrides={"compute_logs": _NO_OUTPUT_FILES})
        )
        # Dagster makes each database when it is first used
        instance.get_runs(limit=1)
        instance.get_dynamic_partitions("tile")
        instance.all_instigator_state()
    return instance


def execute_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    module: str,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> JobExecutionResult:
    """Run a job in this process, as a run of the code location in `module`.

    `execute_in_process` makes runs without a location, which are missing in the UI's timeline and the job's history
    (https://github.com/dagster-io/dagster/issues/17707). Raises KeyboardInterrupt after Ctrl-C; the run is CANCELED.
    """
    run_id = make_new_run_id()
    with _alive(instance, run_id):
        run = instance.create_run_for_job(
            job,
            run_id=run_id,
            run_config=run_config,
            # whoever started this process starts it again; a daemon must not
            tags={**tags, MAX_RETRIES_TAG: "0"},
            remote_job_origin=_origin(module, job.name),
        )
        result = execute_run(InMemoryJob(job), run, instance)
    if any(map(is_interrupt, result.all_events)):
        # Dagster has recorded a failure, because nobody terminated the run in its UI
        instance.report_run_canceled(run, "Ctrl-C stopped the run.")
        raise KeyboardInterrupt
    return result


def _origin(module: str, job: str) -> RemoteJobOrigin:
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=module)
    )
    return RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME).get_job_origin(job)


@contextlib.contextmanager
def _alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Hold a lock that shows `end_dead_runs` that the process of a run is alive."""
    if instance.is_ephemeral:
        yield
        return
    folder = Path(instance.root_directory) / _IN_PROCESS
    private_folder(folder)
    path = folder / run_id
    with open(path, "wb", opener=no_follow) as file:
        lock(file)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the runs of `execute_here` whose process was killed, and release their slots in pools; returns their ids.

    Dagster monitors only runs that its daemon has launched. A dead run would stay STARTED, and when its slots fill a
    pool, every later run of that pool would wait for ever.
    """
    ended: list[str] = []
    if instance.is_ephemeral:
        return ended
    for path in sorted((Path(instance.root_directory) / _IN_PROCESS).glob("*")):
        try:
            with open(path, "rb", opener=no_follow) as file:
                # without locks, nothing is known of the run's process
                if not lock(file, wait=False):
                    continue
                run = instance.get_run_by_id(path.name)
                if run is not None and not run.is_finished:
                    instance.report_run_failed(run, "The process of this run was killed.")
                    ended.append(run.run_id)
                instance.event_log_storage.free_concurrency_slots_for_run(path.name)
                path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue
    return ended


def enqueue(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    module: str,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Put a run of a job of the code location in `module` into the instance's queue; returns its id.

    `dagster job launch` does the same, but starts a code server for each run (`QueuedRunCoordinator.submit_run`).
    """
    image = os.environ.get("DAGSTER_CURRENT_IMAGE")
    code = ReconstructableRepository.for_module(module, "defs", container_image=image)
    run = instance.create_run_for_job(
        job,
        run_config=run_config,
        tags=tags,
        remote_job_origin=_origin(module, job.name),
        job_code_origin=code.get_reconstructable_job(job.name).get_python_origin(),
    )
    instance.report_dagster_event(dg.DagsterEvent.job_enqueue(run), run_id=run.run_id)
    return run.run_id


def has_queue(instance: dg.DagsterInstance) -> bool:
    """Whether the instance's runs wait in a queue for its daemon, as by default."""
    return isinstance(instance.run_coordinator, QueuedRunCoordinator)


def daemon_is_live(instance: dg.DagsterInstance, seconds: float) -> bool:
    """Whether all parts of the instance's daemon have written a heartbeat within the last `seconds`."""
    return all_daemons_live(instance, heartbeat_interval_seconds=seconds, heartbeat_tolerance_seconds=0)


def retry_of(run: dg.DagsterRun) -> str | None:
    """The id of the run by which the daemon retries a failed run, "" until it is known; None if it does not."""
    if run.tags.get(WILL_RETRY_TAG) != "true":
        return None
    return run.tags.get(AUTO_RETRY_RUN_ID_TAG, "")


def add_backfill(
    instance: dg.DagsterInstance,
    assets: Iterable[str],
    partitions_def: dg.PartitionsDefinition,
    keys: Collection[str],
    tags: Mapping[str, str],
    run_config: Mapping[str, Any],
    title: str,
) -> str:
    """Have the instance's daemon launch a backfill, as it does for `request_backfill`; returns its id."""
    backfill_id = make_new_backfill_id()
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        subset = _subset(assets, partitions_def, keys)
    instance.add_backfill(
        PartitionBackfill.from_asset_graph_subset(
            backfill_id=backfill_id,
            backfill_timestamp=time.time(),
            tags=tags,
            dynamic_partitions_store=instance,
            asset_graph_subset=subset,
            title=title,
            description=None,
            run_config=run_config,
        )
    )
    return backfill_id


def backfill_outcome(instance: dg.DagsterInstance, backfill_id: str) -> tuple[bool | None, str]:
    """Whether a backfill has succeeded, None while it is going on; and why Dagster ended it, if it did."""
    backfill = instance.get_backfill(backfill_id)
    if backfill is None:
        return False, "it was deleted"
    if backfill.status not in BULK_ACTION_TERMINAL_STATUSES:
        return None, ""
    why = backfill.error.message.strip() if backfill.error else ""
    if backfill.status == BulkActionStatus.CANCELED:
        why = "it was canceled in the UI"
    return backfill.status == BulkActionStatus.COMPLETED_SUCCESS, why


def is_interrupt(event: dg.DagsterEvent) -> bool:
    """Whether an event is the failure of a step or run that Ctrl-C interrupted."""
    if event.is_step_failure:
        error = event.step_failure_data.error
        return error is not None and error.cls_name == DagsterExecutionInterruptedError.__name__
    return event.is_job_failure and (
        event.job_failure_data.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION
    )


@contextlib.contextmanager
def webserver_app(instance: dg.DagsterInstance, workspace: str) -> Iterator[Any]:
    """Dagster's web application for a workspace file, as an ASGI app to which middleware can be added.

    `dagster-webserver` starts its own server, without a way to add middleware.
    """
    # importing them takes seconds
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    with WorkspaceProcessContext(
        instance, WorkspaceFileTarget([workspace]), version=dg.__version__
    ) as context:
        yield create_app_from_workspace_process_context(context, live_data_poll_rate=2000)
