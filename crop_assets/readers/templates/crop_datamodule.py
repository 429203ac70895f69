"""The data module of terratorch_tl.yaml: TerraTorch's multi-temporal crop data module, for this dataset.

TerraTorch's own class always normalises by the means and standard deviations of the published dataset, ignoring others
without an error; it tests on the validation chips, and loads any number of chips, even 0. This one normalises by
means.txt and stds.txt, tests on the test chips if there are any, and compares the chips with the split. It needs
terratorch 1.2.2 or later.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from terratorch.datamodules import MultiTemporalCropClassificationDataModule
from terratorch.datamodules.utils import Normalize
from terratorch.datasets import MultiTemporalCropClassification


class CropChips(MultiTemporalCropClassification):
    """The chips of a split. Raises ValueError unless there is an image and a mask for each of its ids."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        name = self.splits[self.split]
        ids = sorted((self.data_root / f"{name}_data.txt").read_text().split())
        images = [Path(file).name.removesuffix("_merged.tif") for file in self.image_files]
        masks = [Path(file).name.removesuffix(".mask.tif") for file in self.segmentation_mask_files]
        if not ids or not ids == images == masks:
            raise ValueError(
                f"{name}_data.txt has {len(ids)} chips, and {name}_chips has {len(images)} images and {len(masks)} "
                "masks of them; there must be one of each for every chip, and at least one chip"
            )


class HeldOutChips(CropChips):
    """The chips of the test split, for which TerraTorch's data module asks by the name of the validation split."""

    splits: ClassVar[dict[str, str]] = {"val": "test"}


class CropDataModule(MultiTemporalCropClassificationDataModule):
    """Images float32 (batch, 6 bands, 3 dates, 224, 224) and masks int64 (batch, 224, 224), -1 (no data) to 12.

    With `use_metadata` there are also temporal_coords (batch, 3, 2), the year and the day of the year from 0, and
    location_coords (batch, 2), latitude and longitude. Raises ValueError if `bands` are not all six.
    """

    def __init__(self, data_root: str = ".", **kwargs: Any) -> None:
        super().__init__(data_root, **kwargs)
        if tuple(self.bands) != MultiTemporalCropClassification.all_band_names:
            raise ValueError(
                "TerraTorch mixes up dates and bands unless all six bands are read, in their order"
            )
        self.means = np.loadtxt(Path(data_root, "means.txt")).tolist()
        self.stds = np.loadtxt(Path(data_root, "stds.txt")).tolist()
        self.aug = Normalize(self.means, self.stds)

    def setup(self, stage: str) -> None:
        tests = stage == "test" and Path(self.data_root, "test_data.txt").exists()
        self.dataset_class = HeldOutChips if tests else CropChips
        super().setup(stage)
