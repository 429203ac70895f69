import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

Made = TypeVar("Made")


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` returns and leaves in a folder called `name`, made by the first worker that needs it.

    Nobody changes either. As in pytest-xdist's "Making session-scoped fixtures execute only once".
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    made = folder / "made.pickle"
    with FileLock(f"{folder}.lock"):
        if not made.is_file():
            folder.mkdir(exist_ok=True)
            made.write_bytes(pickle.dumps(make(folder)))
    return pickle.loads(made.read_bytes())  # type: ignore[no-any-return]
