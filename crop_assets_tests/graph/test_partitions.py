"""Partitions that two processes add at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from sqlalchemy.engine import Engine

from crop_assets.partitions import CDL_YEAR, TILE, add_tiles, add_year


@pytest.mark.parametrize(
    ("name", "keys", "add"),
    [
        (CDL_YEAR, ["2022"], lambda instance: add_year(instance, 2022)),
        (
            TILE,
            ["14SMG", "14SNG", "14SMF"],
            lambda instance: add_tiles(instance, ["14SMG", "14SNG", "14SMF"]),
        ),
    ],
)
def test_partitions_that_another_process_adds_meanwhile_are_added_once(
    tmp_path: Path, name: str, keys: list[str], add: Callable[[dg.DagsterInstance], None]
) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        others: list[str] = []

        def first(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            """Add the last of the keys from elsewhere, after Dagster has looked which ones exist."""
            if not others and statement.startswith("INSERT INTO dynamic_partitions"):
                others.append(keys[-1])
                with dg.DagsterInstance.from_config(str(tmp_path)) as other:
                    other.add_dynamic_partitions(name, others)

        sqlalchemy.event.listen(Engine, "before_cursor_execute", first)
        try:
            add(instance)
        finally:
            sqlalchemy.event.remove(Engine, "before_cursor_execute", first)
        assert others
        assert sorted(instance.get_dynamic_partitions(name)) == sorted(keys)
