import dagster as dg
import pytest

from crop_assets.demo.run import _console
from crop_assets.errors import InputError


def test_a_failed_step_is_shown_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    @dg.op
    def cdl(context: dg.OpExecutionContext) -> None:
        context.log.info("reading")
        raise InputError("2022_30m_cdls.tif cannot be read: it is cut short; fetch it again")

    @dg.job(logger_defs={"console": _console}, executor_def=dg.in_process_executor)
    def labels() -> None:
        cdl()

    result = labels.execute_in_process(raise_on_error=False, run_config={"loggers": {"console": {}}})
    assert not result.success
    lines = [line.strip().partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [
        "cdl: reading",
        "ERROR: cdl: failed: 2022_30m_cdls.tif cannot be read: it is cut short; fetch it again",
    ]
