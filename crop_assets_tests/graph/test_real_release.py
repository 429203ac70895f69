import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.windows import from_bounds


def test_the_main_jobs_on_a_real_cdl_release(real: Path, tmp_path: Path) -> None:
    release = real / "cdl/2021_30m_cdls.tif"
    command = [
        sys.executable,
        "-m",
        "crop_assets.cli",
        "demo",
        "--root",
        str(tmp_path),
        "--cdl",
        str(release),
    ]
    demo = subprocess.run(command, capture_output=True, text=True, check=False)
    assert demo.returncode == 0, demo.stdout[-2000:] + demo.stderr[-2000:]

    published = pd.read_csv(real / "tables/cdl_total_dst.csv")
    class_of = dict(zip(published["old_class_value"], published["new_class_value"], strict=True))
    masks = sorted((tmp_path / "data/training_datasets/demo/2021/chips").glob("*.mask.tif"))
    assert len(masks) == 16
    with rasterio.open(release) as cdl:
        for path in masks:
            row, col = (int(part) for part in path.name.removesuffix(".mask.tif").split("_")[1:])
            left, top = 6720 * col - 2356095, 3172605 - 6720 * row
            with rasterio.open(path) as mask:
                assert (mask.bounds.left, mask.bounds.top) == (left, top)
                classes = mask.read(1)
            codes = cdl.read(1, window=from_bounds(left, top - 6720, left + 6720, top, cdl.transform))
            expected = [class_of[code] for code in codes.ravel().tolist()]
            np.testing.assert_array_equal(classes.ravel(), expected)
    assert len(list((tmp_path / "data/training_datasets/demo/2021/chips_filtered").iterdir())) >= 20
