"""All uses of Dagster's private API, each with the reason and the issue that asks for a public one.

No other module imports `dagster._…`, which a test checks, and pyproject.toml has an upper bound for Dagster's version.
When raising it, run the tests of this module's callers: demo, sensors, `crop-assets ui`.
"""

import contextlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.execution.job_execution_result import JobExecutionResult
from dagster._core.instance import InstanceRef

# a run launcher's answers about a run; launchers other than Dagster's own have no public name for them
from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
from dagster._core.launcher import WorkerStatus as WorkerStatus
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

DAEMON = "dagster._daemon"
"""The module of `dagster-daemon`, to run it with this interpreter wherever its scripts are."""
_NO_OUTPUT_FILES = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}


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
    partitions = partitions_def.subset_with_partition_keys(keys)
    subset = AssetGraphSubset(  # type: ignore[call-arg]
        partitions_subsets_by_asset_key={dg.AssetKey(name): partitions for name in assets},
        non_partitioned_asset_keys=set(),
    )
    return dg.RunRequest.for_asset_graph_subset(subset, dict(tags))


def instance_of_terminal(home: Path) -> dg.DagsterInstance:
    """The instance of a DAGSTER_HOME, for runs whose output goes to the terminal.

    `DagsterInstance.from_config` takes no overrides, and the processes that copy the output of a run to files print
    tracebacks at Ctrl-C.
    """
    return dg.DagsterInstance.from_ref(
        InstanceRef.from_dir(str(home), overrides={"compute_logs": _NO_OUTPUT_FILES})
    )


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
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=module)
    )
    origin = RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME).get_job_origin(job.name)
    run = instance.create_run_for_job(job, run_config=run_config, tags=tags, remote_job_origin=origin)
    result = execute_run(InMemoryJob(job), run, instance)
    if any(map(is_interrupt, result.all_events)):
        # Dagster has recorded a failure, because nobody terminated the run in its UI
        instance.report_run_canceled(run, "Ctrl-C stopped the run.")
        raise KeyboardInterrupt
    return result


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
