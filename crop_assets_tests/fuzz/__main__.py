"""Fuzz every reader of bytes from outside: python -m crop_assets_tests.fuzz [SECONDS] [TARGET ...]

It begins with the sound inputs of the targets, and ends at the first input that leaves as anything but an error of the
project's own, with the name of the target and the input. An input that was found belongs into `FOUND` of
`test_mutations`.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["crop_assets", "resources"]):
    from crop_assets_tests.fuzz.targets import OWN, TARGETS

_MAX_BYTES = 1 << 16


def main() -> None:
    seconds, *names = sys.argv[1:] or ["120"]
    unknown = [name for name in names if name not in TARGETS]
    if not seconds.isdecimal() or unknown:
        sys.exit(f"{__doc__}\nTargets: {', '.join(TARGETS)}")
    chosen = names or list(TARGETS)

    def read(data: bytes) -> None:
        """The first byte of an input chooses the target, so that they share one process and its time."""
        if not data:
            return
        name = chosen[data[0] % len(chosen)]
        try:
            TARGETS[name].read(data[1:])
        except OWN:
            pass
        except BaseException:
            print(f"\nThe target {name} was given {data[1:2001]!r}", flush=True)
            raise

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        corpus, found = Path(folder, "corpus"), Path(folder, "found")
        corpus.mkdir()
        found.mkdir()
        for index, name in enumerate(chosen):
            for number, seed in enumerate(TARGETS[name].seeds()):
                (corpus / f"{name}-{number}").write_bytes(bytes([index]) + seed[:_MAX_BYTES])
        options = [
            f"-max_total_time={seconds}",
            "-timeout=60",
            "-rss_limit_mb=8192",
            f"-max_len={_MAX_BYTES + 1}",
        ]
        if os.environ.get("CI"):
            # a search with another beginning each time would fail for what no commit has changed
            options.append("-seed=1")
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={found}/", "-print_final_stats=1", str(corpus)], read
        )
        atheris.Fuzz()


main()
