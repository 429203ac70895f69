"""The measured part of docs/scale.md."""

import datetime as dt
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from crop_assets_tests.scale.measured import Measured, Query

BEGIN, END = "<!-- written by make scale -->\n", "<!-- end -->\n"
_MB = 1e6


def write(page: Path, found: Measured) -> None:
    """Replace the measured part of the page; the rest is written by hand."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + "\n".join(["", *_lines(found), ""]) + END + rest.split(END)[1])


def _lines(found: Measured) -> Iterable[str]:
    yield _setting(found)
    yield ""
    yield from _cost(found)
    yield from _by_type(found)
    yield from _ui(found)
    yield from _sizes(found)
    yield from _looks(found)


def _setting(found: Measured) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("dagster", "sqlalchemy"))
    return (
        f"*{dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, "
        f"PostgreSQL {found.postgres}; load average {found.load[0]:.1f} before and {found.load[-1]:.1f} at the end.*"
    )


def _cost(found: Measured) -> Iterable[str]:
    tiles = found.tiles_made
    first, second = found.counts[:2]
    rows, size = second.rows - first.rows, second.total_bytes - first.total_bytes
    yield f"## {tiles:,} tile partitions through daemon, queue and PostgreSQL"
    yield ""
    yield from _table(
        ["", "in total", "a tile"],
        [
            ["wall time", f"{found.seconds:,.0f} s", f"{found.seconds / tiles:.2f} s"],
            *(
                [f"CPU, {part}", f"{seconds:,.0f} s", f"{seconds / tiles:.3f} s"]
                for part, seconds in found.cpu.items()
            ),
            ["runs", f"{found.runs}", ""],
            ["rows of the event log", f"{rows:,}", f"{rows / tiles:.1f}"],
            ["database", f"{size / _MB:,.0f} MB", f"{size / tiles / 1000:,.0f} kB"],
        ],
    )
    idle = ", ".join(f"{part} {seconds * 2:.1f} s" for part, seconds in found.idle.items())
    yield f"With nothing to do, a minute costs in CPU: {idle}."
    yield ""


def _by_type(found: Measured) -> Iterable[str]:
    first, second = (counts.events for counts in found.counts[:2])
    more = {name: (count - first.get(name, 0)) / found.tiles_made for name, count in second.items()}
    named = sorted(more.items(), key=lambda item: -item[1])[:5]
    yield "Rows a tile: " + ", ".join(f"{count:.1f} {name.lower()}" for name, count in named) + "."
    yield ""


def _ui(found: Measured) -> Iterable[str]:
    yield "## The UI"
    yield ""
    yield (
        "The slowest query of each page, as Chromium sends it: seconds of the first time, and the median when it is "
        "repeated alone."
    )
    yield ""
    head = ["page", "query"]
    for partitions in (found.tiles_made, found.partitions):
        head += [f"{partitions:,} partitions: first", "again"]
    yield from _table(head, [_page(name, found) for name in found.pages[0]])


def _page(name: str, found: Measured) -> list[str]:
    filled = {query.name: query for query in found.pages[1][name]}
    slowest = max(filled.values(), key=lambda query: query.seconds)
    before = next((query for query in found.pages[0][name] if query.name == slowest.name), None)
    return [name, f"`{slowest.name}`", *_seconds(before), *_seconds(slowest)]


def _seconds(query: Query | None) -> list[str]:
    return [f"{query.first:.2f}", f"{query.seconds:.2f}"] if query else ["", ""]


def _sizes(found: Measured) -> Iterable[str]:
    first, second, filled = found.counts
    bytes_a_tile = (second.total_bytes - first.total_bytes) / found.tiles_made
    rows_a_tile = (second.rows - first.rows) / found.tiles_made
    ten = found.tiles * 10
    yield "## Carried on"
    yield ""
    yield from _table(
        ["tile partitions", "runs", "rows of the event log", "database", "wall time of all backfills"],
        [
            [
                f"{found.tiles_made:,} (measured)",
                f"{found.runs:,}",
                f"{second.rows:,}",
                f"{second.total_bytes / _MB:,.0f} MB",
                f"{found.seconds / 60:.0f} min",
            ],
            [
                f"{ten:,} (ten years, by proportion)",
                f"{found.runs * ten / found.tiles_made:,.0f}",
                f"{rows_a_tile * ten:,.0f}",
                f"{bytes_a_tile * ten / _MB:,.0f} MB",
                f"{found.seconds / found.tiles_made * ten / 3600:.1f} h",
            ],
            [
                f"{found.partitions:,} (database measured)",
                f"{filled.runs:,}",
                f"{filled.rows:,}",
                f"{filled.total_bytes / _MB:,.0f} MB",
                f"{found.seconds / found.tiles_made * found.partitions / 3600:.1f} h",
            ],
        ],
    )
    largest = ", ".join(
        f"`{name}` {size / _MB:,.0f} MB" for name, size in list(filled.table_bytes.items())[:4]
    )
    yield f"The largest tables at {found.partitions:,}: {largest}."
    yield ""
    yield (
        f"A second backfill of {found.few} tiles, all reused, took {found.again[0]:.0f} s with {found.tiles_made:,} "
        f"partitions in the database and {found.again[1]:.0f} s with {found.partitions:,}."
    )
    yield ""


def _looks(found: Measured) -> Iterable[str]:
    yield "## The look of `dataset_sensor`"
    yield ""
    yield "At years that are done, on a local disk. Dagster ends a tick after 60 seconds."
    yield ""
    yield from _table(
        ["years", "tiles", "ticks of the first look", "the longest", "a tick after an event of one year"],
        [
            [
                f"{look.years}",
                f"{look.years * found.tiles:,}",
                f"{len(look.first)}",
                f"{max(look.first):.1f} s",
                f"{look.later:.1f} s",
            ]
            for look in found.looks
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
