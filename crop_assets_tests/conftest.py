from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    """Real data by others, beside the repository; never part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"the real data by others are not at {folder}")
    return folder
