"""The Celery app of a worker: `celery -A crop_assets.celery_worker worker`, with the DAGSTER_HOME of the daemon.

Broker, backend and settings are those of the run launcher in dagster.yaml.
"""

import dagster as dg
from dagster_celery.tasks import create_execute_job_task

from crop_assets.celery_launcher import CeleryWorkerRunLauncher
from crop_assets.errors import InputError

with dg.DagsterInstance.get() as _instance:
    _launcher = _instance.run_launcher
if not isinstance(_launcher, CeleryWorkerRunLauncher):
    raise InputError(
        f"the run launcher in dagster.yaml is {type(_launcher).__name__}; a worker needs "
        f"{CeleryWorkerRunLauncher.__module__}.{CeleryWorkerRunLauncher.__name__}, as in deploy/many/dagster.yaml"
    )
app = _launcher.celery
create_execute_job_task(app)
