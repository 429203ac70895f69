"""TerraTorch with the configurations in the folder of a dataset."""

import csv
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from terratorch.cli_tools import build_lightning_cli

from crop_assets_tests.readers.dataset import Dataset

RANDOM_WEIGHTS = "--model.init_args.model_args.backbone_pretrained="
"""Empty, for TerraTorch takes the word false for a string, which is true."""
STAGES = {"train": "fit", "validation": "fit", "test": "test"}
"""The stage in which TerraTorch loads a split."""
STEPS = 3


def read(dataset: Dataset, config: str) -> list[str]:
    """Compare every chip of every split with rasterio; returns what was found.

    The working directory must be that of the dataset.
    """
    module = build_lightning_cli(["-c", config, RANDOM_WEIGHTS], run=False).datamodule
    module.train_transform = None  # it flips and rotates
    lines = []
    for split, chips in dataset.splits.items():
        module.setup(STAGES[split])
        samples = getattr(module, {"validation": "val"}.get(split, split) + "_dataset")
        assert len(samples) == len(chips) > 0, (split, len(samples), len(chips))
        for number, chip in enumerate(chips):
            _compare(samples[number], samples.image_files[number], dataset, chip)
        lines.append(
            f"{split}: {len(samples)} chips, as many as the split has; all images and masks are equal"
        )
    if "test" not in dataset.splits:
        module.setup("test")
        assert len(module.test_dataset) == len(dataset.splits["validation"])
        lines.append("without a test split, it tests on the validation chips")
    lines += _normalised(module, dataset)
    if getattr(module, "use_metadata", False):
        lines += _dates_and_places(module.train_dataset, dataset.splits["train"], dataset)
        lines += _dates_and_places(module.val_dataset, dataset.splits["validation"], dataset)
    return lines


def _compare(sample: dict[str, Any], file: str, dataset: Dataset, chip: str) -> None:
    assert Path(file).name == f"{chip}_merged.tif", (file, chip)
    image, mask = sample["image"], sample["mask"]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (6, 3, 224, 224)), chip
    assert np.array_equal(image.numpy(), np.nan_to_num(dataset.image(chip))), chip
    assert mask.shape == (224, 224), chip
    assert np.array_equal(mask.numpy(), dataset.mask(chip) - 1), chip
    assert mask.min() >= -1 and mask.max() <= 12, chip


def _normalised(module: Any, dataset: Dataset) -> list[str]:
    """Means and standard deviations of the bands over valid pixels of the training split, as the model gets them."""
    values: list[list[np.ndarray]] = [[] for _ in range(6)]
    for number, chip in enumerate(dataset.splits["train"]):
        batch = module.aug({"image": module.train_dataset[number]["image"][None].clone()})
        for band, found in enumerate(batch["image"][0].double().numpy()):
            values[band].append(found[~np.isnan(dataset.image(chip)[band])])
    means = [float(np.concatenate(found).mean()) for found in values]
    stds = [float(np.concatenate(found).std()) for found in values]
    assert np.allclose(means, 0, atol=1e-4), means
    assert np.allclose(stds, 1, atol=1e-4), stds
    return [
        f"normalised training images have means up to {max(map(abs, means)):.1e} from 0 and standard deviations up to "
        f"{max(abs(std - 1) for std in stds):.1e} from 1"
    ]


def _dates_and_places(samples: Any, chips: list[str], dataset: Dataset) -> list[str]:
    dates = dataset.dates()
    furthest = 0.0
    for number, chip in enumerate(chips):
        sample = samples[number]
        assert sample["temporal_coords"].tolist() == dates[chip], chip
        lat, lon = dataset.place(chip)
        found = sample["location_coords"].tolist()
        east = (found[1] - lon) * 111_320 * math.cos(math.radians(lat))
        furthest = max(furthest, math.hypot((found[0] - lat) * 111_320, east))
    # TerraTorch takes the pixel right below the centre
    assert furthest < 60, furthest
    return [
        f"dates of {len(chips)} chips are (year, day of the year - 1); places are (latitude, longitude), up to "
        f"{furthest:.0f} m from the centre"
    ]


def train(config: str) -> list[str]:
    """Train a few steps from random weights by TerraTorch's command line; returns the losses.

    The working directory must be that of the dataset.
    """
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "terratorch", "fit", "-c", config, RANDOM_WEIGHTS]
        command += [
            f"--trainer.max_steps={STEPS}",
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={logs}",
        ]
        command += [
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            f"--trainer.logger.save_dir={logs}",
        ]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (metrics,) = Path(logs).rglob("metrics.csv")
        with metrics.open(newline="") as file:
            losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == STEPS and all(map(math.isfinite, losses)), losses
    return [f"{STEPS} training steps from random weights, loss {', '.join(f'{loss:.3f}' for loss in losses)}"]
