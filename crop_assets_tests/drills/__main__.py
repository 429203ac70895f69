"""Disturb whole runs in the ways of bad days, and write docs/drills.md with a row for each drill.

python -m crop_assets_tests.drills [--only NAME …] [--report FILE]
"""

import argparse
import contextlib
import datetime as dt
import functools
import importlib.util
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import yaml

from crop_assets.demo.run import server_environment
from crop_assets.demo.server import serve
from crop_assets.stages import STAGES
from crop_assets_tests.drills.world import COMMAND, Bench, Call, DrillError, Store, opened
from crop_assets_tests.scale.__main__ import postgres
from crop_assets_tests.small_world import digests
from resources.loopback import free_port

KILLS, HAND = 50, 5
DRILLS: dict[str, Callable[[Bench, random.Random], str]] = {}


def drill(function: Callable[[Bench, random.Random], str]) -> Callable[[Bench, random.Random], str]:
    """Register a drill. Its docstring is what happens, and what it returns is how that ended."""
    DRILLS[function.__name__] = function
    return function


_JOBS = ("labels_job", "tiles_job", "dataset_job")
MADE = [stage for job in _JOBS for stage in STAGES.values() if stage.job == job]


def at_stage(call: Call, store: Store, number: int) -> bool:
    """Whether the run got to the stage `MADE[number]` before it ended."""
    stage = MADE[number]
    before = MADE[number - 1].name if number and MADE[number - 1].job == stage.job else ""
    header = f"— {stage.job}"
    return call.wait_for(lambda: header in call.output and (not before or store.table(before)))


@drill
def killed(bench: Bench, chance: random.Random) -> str:
    """`kill -9` at random points of each stage"""
    kills: Counter[str] = Counter()
    late = stores = 0
    waiting = list(range(len(MADE)))
    while sum(kills.values()) < KILLS:
        stores += 1
        store = bench.empty(f"killed_{stores}")
        hand = sorted(chance.sample(waiting, min(HAND, len(waiting))))
        waiting = [stage for stage in waiting if stage not in hand] or list(range(len(MADE)))
        for stage in hand:
            call = store.start()
            if at_stage(call, store, stage):
                time.sleep(chance.uniform(0, 0.5))
            if call.process.poll() is None:
                call.kill()
                kills[MADE[stage].name] += 1
            else:
                late += 1
                call.end()
        store.require_undisturbed()
        shutil.rmtree(store.folder)
    least = f"{len(kills)} of {len(MADE)} stages, each {min(kills.values())} to {max(kills.values())} times"
    more = f"; {late} more came after the end" * bool(late)
    return f"{sum(kills.values())} kills in {least}{more}. {stores} stores: undisturbed bytes"


@drill
def terminated(bench: Bench, chance: random.Random) -> str:
    """SIGTERM in mid-run, as from a batch scheduler"""
    longest, stopped = 0.0, 0
    store = bench.empty("terminated")
    for stage in sorted(chance.sample(range(len(MADE) - 4), 6)):
        call = store.start()
        if not at_stage(call, store, stage):
            call.end()
            continue
        time.sleep(chance.uniform(0, 0.3))
        began = time.monotonic()
        call.process.terminate()
        ended = call.end()
        longest = max(longest, time.monotonic() - began)
        if ended.code != 130:
            raise DrillError(f"exit code {ended.code}:\n{ended.output[-3000:]}")
        stopped += 1
    store.require_undisturbed()
    return f"{stopped} times exit code 130, gone within {longest:.1f} s; then undisturbed bytes"


@contextlib.contextmanager
def small_disk(store: Store, megabytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of its own for the store's data; yields a function that mounts it again with other options."""
    store.data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "drill", str(store.data)]
    subprocess.run(mount, check=True)
    try:
        yield (
            lambda options: (
                subprocess.run(["mount", "-o", f"remount,{options}", str(store.data)], check=True) and None
            )
        )
    finally:
        subprocess.run(["umount", "-l", str(store.data)], check=True)


@drill
def disk_full(bench: Bench, chance: random.Random) -> str:
    """The disk of the store is full, at four sizes"""
    store = bench.empty("measured")
    store.run()
    # hard links take no room
    sizes = {path.stat().st_ino: path.stat().st_size for path in store.data.rglob("*") if path.is_file()}
    needed = sum(sizes.values()) / 1e6
    words = set()
    for share in (0.1, 0.35, 0.6, 0.9):
        store = bench.empty("disk_full")
        with small_disk(store, max(1, int(needed * share))) as mounted:
            words.add(store.run().require_clear_error("(No space left|MB free, and|make room)"))
            mounted(f"size={int(needed * 3)}m")
            store.require_undisturbed()
    return f"4 clear errors, such as “{sorted(words)[0]}”; with room again, undisturbed bytes"


@drill
def read_only(bench: Bench, chance: random.Random) -> str:
    """The store becomes read-only between labels and tiles, and in mid-run"""
    store = bench.empty("read_only")
    with small_disk(store, 2000) as mounted:
        if store.run("--until", "labels").code != 0:
            raise DrillError("the labels failed")
        mounted("ro")
        text = store.run().require_clear_error("Read-only file system")
        mounted("rw")
        call = store.start()
        call.wait_for(lambda: store.table("scene_metadata"))
        # a file that is open for writing keeps a disk from becoming read-only
        with contextlib.suppress(subprocess.CalledProcessError):
            mounted("ro")
        ended = call.end()
        if ended.code:
            ended.require_clear_error("Read-only file system")
        mounted("rw")
        store.require_undisturbed()
    return f"clear errors (“{text}”); writable again, undisturbed bytes"


@drill
def clock(bench: Bench, chance: random.Random) -> str:
    """The clock is two days ahead for labels, a year behind for the tiles, and right for the dataset"""
    if not shutil.which("faketime"):
        return "not run: faketime is not installed"
    store = bench.empty("clock")
    for until, shift in (("labels", "+2d"), ("tiles", "-365d")):
        # as of a wrong clock, of which waiting threads know nothing
        ended = store.start(
            "--until", until, before=("faketime", "-f", shift), FAKETIME_DONT_FAKE_MONOTONIC="1"
        ).end()
        if ended.code != 0:
            raise DrillError(ended.output[-3000:])
    store.require_undisturbed()
    return "undisturbed bytes"


@drill
def server_gone(bench: Bench, chance: random.Random) -> str:
    """The catalogue and the gateway go away in mid-run: for good, and for half a minute"""
    port = free_port()
    texts = []
    for name, stage, back in (("gone", "band_cids", False), ("away", "scene_metadata", True)):
        store = bench.empty(name)
        with serve(bench.setting.world, port) as server:
            here = server_environment(server)
            call = store.start(**here)
            if not call.wait_for(functools.partial(store.table, stage)):
                raise DrillError(call.output)
        if back:
            time.sleep(30)
        with serve(bench.setting.world, port) if back else contextlib.nullcontext():
            ended = call.end()
        if back and ended.code:
            raise DrillError(ended.output[-3000:])
        if not back:
            texts.append(ended.require_clear_error("cannot be reached"))
        with serve(bench.setting.world, port):
            if (ended := store.run(**here)).code:
                raise DrillError(ended.output[-3000:])
        # tables have the server's address, chips have not
        found = {name: digest for name, digest in digests(store.dataset).items() if name.startswith("chips")}
        if (
            found != {name: digest for name, digest in bench.undisturbed.items() if name in found}
            or not found
        ):
            raise DrillError("chips differ")
    return f"a clear error (“{texts[0]}”), and success by a retry; then undisturbed chips"


@drill
def planted(bench: Bench, chance: random.Random) -> str:
    """Files of the finished store are cut in half, emptied, filled with zeros or changed by one bit"""
    store = bench.empty("planted")
    store.require_undisturbed()
    files = sorted(path for path in store.dataset.rglob("*") if path.is_file())
    kinds = {
        "half": lambda data: data[: len(data) // 2],
        "empty": lambda data: b"",
        "zeros": lambda data: bytes(len(data)),
        "a bit": lambda data: (
            data[:40] + bytes([data[40] ^ 1]) + data[41:] if len(data) > 40 else data + b"x"
        ),
    }
    tables = [path for path in files if path.suffix == ".parquet"]
    rasters = [path for path in files if path.suffix == ".tif"]
    hit = {*chance.sample(tables, min(16, len(tables))), *chance.sample(rasters, min(16, len(rasters)))}
    named = 0
    for number, (kind, change) in enumerate(kinds.items()):
        wave = sorted(hit)[number :: len(kinds)]
        for path in wave:
            data = path.read_bytes()
            # a hard link would change the other name too, which is another drill
            path.unlink()
            path.write_bytes(change(data))
        shown = subprocess.run(
            [COMMAND, "verify", "--data", str(store.data), "--recipe", str(bench.recipe)],
            env=bench.variables(),
            capture_output=True,
            text=True,
            check=False,
        )
        if shown.returncode == 0 or "Traceback" in shown.stderr:
            raise DrillError(f"verify ({kind}): {shown.stdout}{shown.stderr}"[-3000:])
        named += sum(path.relative_to(store.data).as_posix() in shown.stdout for path in wave)
        store.require_undisturbed()
    return f"{len(hit)} files; `verify` fails each time and names {named} of them; the next runs make undisturbed bytes"


@drill
def two_at_once(bench: Bench, chance: random.Random) -> str:
    """Two runs of the same year and tiles at the same time, with equal recipes"""
    clear = 0
    for number in range(3):
        store = bench.empty(f"two_{number}")
        calls = [store.start(), store.start(DAGSTER_HOME="") if number else store.start()]
        for call in calls:
            ended = call.end()
            if ended.code != 0:
                ended.require_clear_error("written by another run meanwhile|launch this run again|missing")
                clear += 1
        store.require_undisturbed()
    return f"6 runs, {clear} of them ended with a clear error; undisturbed bytes"


@drill
def two_recipes_at_once(bench: Bench, chance: random.Random) -> str:
    """Two runs of the same year and tiles at the same time, with different recipes of one dataset"""
    other = bench.write_recipe("other.yaml", max_bad_percent=1, seed=7)
    alone = bench.empty("other_alone")
    if alone.run(recipe=other).code != 0:
        raise DrillError("the other recipe fails alone")
    of_other = digests(alone.dataset)
    clear = 0
    for number in range(3):
        store = bench.empty(f"recipes_{number}")
        for call in [store.start(), store.start(recipe=other)]:
            ended = call.end()
            if ended.code != 0:
                ended.require_clear_error("another|launch this run again|missing|materialize")
                clear += 1
        if (ended := store.run(recipe=other)).code != 0:
            raise DrillError(f"the other recipe fails afterwards:\n{ended.output[-4000:]}")
        store.require_bytes(of_other)
        store.require_undisturbed()
    return f"6 runs, {clear} of them ended with a clear error; then each recipe's undisturbed bytes"


@drill
def reboot(bench: Bench, chance: random.Random) -> str:
    """UI, daemon, code server and runs are killed at once in mid-backfill, and started again"""
    store = bench.empty("reboot")
    home = store.folder / "home"
    # after a reboot, a run counts as alive until this long after its start
    text = (
        (home / "dagster.yaml").read_text().replace("max_runtime_seconds: 43200", "max_runtime_seconds: 20")
    )
    text = text.replace("poll_interval_seconds: 30", "poll_interval_seconds: 2")
    (home / "dagster.yaml").write_text(text)
    own = {
        "CROP_ASSETS_DATA": str(store.data),
        "CROP_ASSETS_RECIPE": str(bench.recipe),
        "DAGSTER_HOME": str(home),
    }

    def boot(number: int) -> "subprocess.Popen[bytes]":
        with (store.folder / f"dev_{number}.log").open("wb") as out:
            return subprocess.Popen(
                [COMMAND, "dev", "--ui-port", str(free_port())],
                env=bench.variables(**own),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def power_off(machine: "subprocess.Popen[bytes]") -> None:
        family = [psutil.Process(machine.pid), *psutil.Process(machine.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        machine.wait()

    with dg.DagsterInstance.from_config(str(home)) as instance:
        machine = boot(1)
        try:
            call = _daemon_call(store, instance)
            if not call.wait_for(lambda: store.table("band_cids")):
                raise DrillError(call.output)
            power_off(machine)
            call.kill()
            stuck = [run.status.value for run in instance.get_runs() if not run.is_finished]
            machine = boot(2)
            ended = _daemon_call(store, instance).end()
            if ended.code != 0:
                raise DrillError(ended.output[-3000:])
            deadline = time.monotonic() + 120
            while any(not run.is_finished for run in instance.get_runs()) or _slots(instance):
                if time.monotonic() > deadline:
                    raise DrillError("runs or slots are left over")
                time.sleep(1)
        finally:
            power_off(machine)
    store.require_bytes()
    return (
        f"{len(stuck)} runs were {', '.join(sorted(set(stuck)))} and ended; all slots free; undisturbed bytes"
    )


@drill
def database_restarted(bench: Bench, chance: random.Random) -> str:
    """PostgreSQL, which keeps Dagster's runs and events, is restarted in mid-run"""
    if importlib.util.find_spec("dagster_postgres") is None or not list(
        Path("/usr/lib/postgresql").glob("*/bin")
    ):
        return "not run: dagster-postgres or PostgreSQL is not installed"
    with tempfile.TemporaryDirectory(prefix="drill-db-") as folder:
        # PostgreSQL refuses to run as root
        Path(folder).chmod(0o755)
        sockets = Path(folder) / "postgres"
        sockets.mkdir()
        with postgres(sockets) as (address, _):
            texts, survived = set(), 0
            for stage in ("scene_metadata", "band_cids", "chips"):
                store = bench.empty("database")
                settings = yaml.safe_load((store.folder / "home/dagster.yaml").read_text())
                settings["storage"] = {"postgres": {"postgres_url": address}}
                (store.folder / "home/dagster.yaml").write_text(yaml.safe_dump(settings))
                call = store.start()
                if not call.wait_for(functools.partial(store.table, stage)):
                    raise DrillError(call.output)
                _restart(sockets)
                ended = call.end()
                if ended.code:
                    texts.add(ended.require_clear_error("(database|server closed|connection)"))
                survived += ended.code == 0
                store.require_undisturbed()
            _pg_ctl(sockets, "stop", "-m", "fast")
    error = f", {len(texts)} clear errors, such as “{sorted(texts)[0]}”" if texts else ""
    return f"{survived} of 3 runs went on{error}; then undisturbed bytes"


def _restart(sockets: Path) -> None:
    _pg_ctl(sockets, "restart", "-m", "fast", "-l", str(sockets / "restarted.log"))


def _pg_ctl(sockets: Path, *words: str) -> None:
    (data,) = (path.parent for path in sockets.rglob("postmaster.pid"))
    program = max(Path("/usr/lib/postgresql").glob("*/bin")) / "pg_ctl"
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    subprocess.run([*user, program, "-D", data, "-w", *words], check=True, capture_output=True, cwd="/")


def _slots(instance: dg.DagsterInstance) -> set[str]:
    return {slot.run_id for slot in instance.event_log_storage.get_concurrency_info("tiles").claimed_slots}


def _daemon_call(store: Store, instance: dg.DagsterInstance) -> Call:
    from crop_assets.dagster_internals import daemon_is_live

    deadline = time.monotonic() + 120
    while not daemon_is_live(instance, 20):
        if time.monotonic() > deadline:
            raise DrillError("the daemon did not start")
        time.sleep(0.5)
    return store.start("--daemon")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="*", choices=sorted(DRILLS), help="run these drills alone, without a report"
    )
    parser.add_argument("--report", type=Path, default=Path("docs/drills.md"))
    options = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="drills-") as folder, opened(Path(folder)) as bench:
        for name in options.only or DRILLS:
            began = time.monotonic()
            try:
                outcome = DRILLS[name](bench, random.Random(name))
            except Exception:
                failed, outcome = True, "**failed**"
                traceback.print_exc()
            seconds = time.monotonic() - began
            print(f"{name}: {outcome} ({seconds:.0f} s)", flush=True)
            rows.append(f"| {DRILLS[name].__doc__} | {outcome} |")
    if not options.only:
        options.report.write_text(_report(rows))
    return int(failed)


def _report(rows: list[str]) -> str:
    memory = psutil.virtual_memory().total / 2**30
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    )
    return "\n".join(
        [
            "# Fault drills",
            "",
            "`make drills` disturbs whole runs of `crop-assets run` over a small world: three tiles, two chips each, "
            "with `deploy/one/dagster.yaml`. Afterwards the same command runs again. Every file of the dataset must "
            "then have the SHA-256 that an undisturbed run gives it, and an error must name its cause in one line, "
            "without a traceback.",
            "",
            f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {machine}.",
            "",
            "| what happens | how it ends |",
            "|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
