"""The rules by which ClarkCGA/multi-temporal-crop-classification-baseline reads a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
import yaml
from torch import nn

from crop_assets_tests.readers.dataset import Dataset

STEPS = 3


def load(folder: Path, ids_file: Path) -> list[tuple[Path, Path]]:
    """Pairs of image and mask, as the loader finds them: all files below `folder` by their names, sorted, in pairs."""
    ids = set(pd.read_csv(ids_file, header=None)[0])
    tifs = sorted(path for path in folder.rglob("*.tif") if _id(path) in ids)
    images = [path for path in tifs if "merged" in path.name]
    masks = [path for path in tifs if "mask" in path.name]
    return list(zip(images, masks, strict=False))


def _id(path: Path) -> str:
    return "_".join(path.stem.split("_")[1:3]).split(".")[0]


def read(dataset: Dataset, config: dict[str, Any]) -> list[str]:
    """Pair the chips of each split; returns what was found. The working directory must be that of the dataset."""
    source = Path(config["src_dir"])
    folder = source / config["train_dataset_name"]
    keys = {"train": "train_csv_path", "validation": "val_csv_path"}
    if "test" in dataset.splits:
        keys["test"] = "test_csv_path"
    lines = []
    for split, key in keys.items():
        pairs = load(folder, source / config[key])
        chips = dataset.splits[split]
        assert [image.name for image, _ in pairs] == [f"{chip}_merged.tif" for chip in chips], split
        assert [mask.name for _, mask in pairs] == [f"{chip}.mask.tif" for chip in chips], split
        classes = set()
        for image, mask in pairs:
            with rasterio.open(image) as raster:
                assert (raster.count, raster.shape) == (config["input_channels"], (224, 224)), image
            with rasterio.open(mask) as raster:
                assert (raster.count, raster.shape) == (1, (224, 224)), mask
                classes |= set(np.unique(raster.read(1)).tolist())
        assert classes <= set(config["class_mapping"]), classes
        assert len(config["class_mapping"]) == config["n_classes"]
        lines.append(
            f"{split}: {len(pairs)} pairs, as many as the split has; classes {min(classes)} to {max(classes)}"
        )
    wrong = len(load(folder, source / "train_data.txt"))
    above = len(load(source, source / config["train_csv_path"]))
    assert wrong == 0 and above >= 2 * len(dataset.splits["train"])
    lines.append(
        f"with train_data.txt it finds {wrong} chips; in the dataset's folder instead of {folder}, "
        f"{above} pairs for training"
    )
    return lines


def train(config: dict[str, Any]) -> list[str]:
    """Train a small model on normalised batches with the weights of the configuration; returns the losses."""
    torch.manual_seed(0)
    source = Path(config["src_dir"])
    pairs = load(source / config["train_dataset_name"], source / config["train_csv_path"])
    mean, std = (np.tile(config["global_stats"][name], 3)[:, None, None] for name in ("mean", "std"))
    model = nn.Sequential(
        nn.Conv2d(config["input_channels"], 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, config["n_classes"], 1),
    )
    # as its losses do, class 0 gets the weight 0
    weights = torch.tensor([0.0, *config["criterion"]["weight"]])
    loss_of = nn.CrossEntropyLoss(weights, ignore_index=config["criterion"]["ignore_index"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for step in range(STEPS):
        images, masks = [], []
        for image, mask in (pairs[(2 * step + at) % len(pairs)] for at in range(2)):
            with rasterio.open(image) as raster:
                images.append(torch.from_numpy((raster.read() - mean) / std).float())
            with rasterio.open(mask) as raster:
                masks.append(torch.from_numpy(raster.read(1)).long())
        loss = loss_of(model(torch.stack(images)), torch.stack(masks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all(), losses
    return [f"{STEPS} training steps of a small model, loss {', '.join(f'{loss:.3f}' for loss in losses)}"]


def configuration(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((folder / "clark_config.yaml").read_text())
    return config
