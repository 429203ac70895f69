import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import yaml

from crop_assets.classes import CLASSES
from crop_assets.hls import REFLECTANCE_BANDS
from crop_assets.readers.configs import CONFIGS, config_texts

MEANS = [716.784706, 1056.454171, 1286.386089, 2962.158934, 2763.67124, 2008.0]
STDS = [m - 500 for m in MEANS]
LOWS = [m - 300 for m in MEANS]
HIGHS = [m + 300 for m in MEANS]
WEIGHTS = [0.0, 1e-05, *(w / 78 for w in range(1, 12))]
"""One class is absent, and one has a weight that YAML readers take for a string where it is written as 1e-05."""


def made(has_test: bool = False, **others: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        "means": MEANS,
        "stds": STDS,
        "minimums": LOWS,
        "maximums": HIGHS,
        "class_weights": WEIGHTS,
    }
    return config_texts(**values | others, has_test=has_test)


def parsed(name: str, has_test: bool = False) -> dict[str, Any]:
    config = yaml.safe_load(made(has_test)[name])
    assert isinstance(config, dict)
    return config


def test_the_files_are_those_that_the_readers_get() -> None:
    assert tuple(made()) == CONFIGS
    for name, text in made().items():
        assert text.endswith("\n") and not text.endswith("\n\n"), name
        assert "$" not in text, name
        assert "terratorch 1.2.2" in text or "terratorch>=1.2.2" in text, name
        if name.endswith(".yaml"):
            assert text.startswith("# ") and "#1083" in text, name


def test_the_generic_configuration_reads_the_folders_as_they_are() -> None:
    data = parsed("terratorch.yaml")["data"]
    assert data["class_path"] == "terratorch.datamodules.GenericNonGeoSegmentationDataModule"
    given = data["init_args"]
    assert {given[f"{split}_data_root"] for split in ("train", "val", "test")} == {"chips_filtered"}
    assert (given["train_split"], given["val_split"]) == ("train_data.txt", "validation_data.txt")
    assert (given["img_grep"], given["label_grep"]) == ("*_merged.tif", "*.mask.tif")
    assert (given["means"], given["stds"]) == ("means.txt", "stds.txt")
    assert (given["no_data_replace"], given["no_label_replace"]) == (0, -1)
    assert given["reduce_zero_label"] is given["expand_temporal_dimension"] is True
    assert given["dataset_bands"] == given["output_bands"]
    assert len(given["dataset_bands"]) == len(REFLECTANCE_BANDS)
    assert given["num_classes"] == 13


@pytest.mark.parametrize(
    ("has_test", "ending"),
    [(False, ("validation_data.txt", "val_ids.csv")), (True, ("test_data.txt", "test_ids.csv"))],
)
def test_models_are_tested_on_the_test_split_if_there_is_one(has_test: bool, ending: tuple[str, str]) -> None:
    assert parsed("terratorch.yaml", has_test)["data"]["init_args"]["test_split"] == ending[0]
    assert parsed("clark_config.yaml", has_test)["test_csv_path"] == ending[1]


def test_dates_and_places_come_from_a_module_in_the_folder() -> None:
    data = parsed("terratorch_tl.yaml")["data"]
    module, name = data["class_path"].split(".")
    text = made()[f"{module}.py"]
    assert name in {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    given = data["init_args"]
    assert given["use_metadata"] is True
    assert (given["data_root"], given["metadata_file_name"]) == (".", "chips_df.csv")
    # the class reads six bands whatever it is given, and its statistics are files
    assert not {"means", "stds", "bands"} & set(given)
    model = parsed("terratorch_tl.yaml")["model"]["init_args"]["model_args"]
    assert model["backbone"].endswith("_tl")
    assert model["backbone_coords_encoding"] == ["time", "location"]


@pytest.mark.parametrize("name", ["terratorch.yaml", "terratorch_tl.yaml"])
def test_the_models_of_terratorch_have_the_classes_and_dates_of_the_dataset(name: str) -> None:
    config = parsed(name)
    task = config["model"]["init_args"]
    assert task["class_names"] == list(CLASSES[1:])
    assert task["class_weights"] == WEIGHTS and all(isinstance(w, float) for w in task["class_weights"])
    assert task["ignore_index"] == config["data"]["init_args"]["no_label_replace"] == -1
    model = task["model_args"]
    assert model["num_classes"] == 13
    assert model["backbone_num_frames"] == model["necks"][1]["effective_time_dim"] == 3
    assert len(model["backbone_bands"]) == 6
    transforms = config["data"]["init_args"]["train_transform"]
    assert all(part["class_path"].count(".") for part in transforms), "short names are not found"
    assert transforms[-1]["init_args"] == {"n_timesteps": 3}


def test_the_baseline_gets_six_statistics_and_the_weights_without_class_0() -> None:
    config = parsed("clark_config.yaml")
    assert (config["src_dir"], config["train_dataset_name"]) == (".", "chips_filtered")
    assert (config["train_csv_path"], config["val_csv_path"]) == ("train_ids.csv", "val_ids.csv")
    assert set(config["global_stats"]) == {"min", "max", "mean", "std"}
    for name, values in {"min": LOWS, "max": HIGHS, "mean": MEANS, "std": STDS}.items():
        assert config["global_stats"][name] == pytest.approx(values, abs=1e-6)
    assert (config["n_classes"], config["input_channels"]) == (14, 18)
    assert config["class_mapping"] == dict(enumerate(CLASSES))
    criterion = config["criterion"]
    assert (criterion["weight"], criterion["ignore_index"]) == (WEIGHTS, 0)


def test_numbers_of_numpy_make_the_same_texts() -> None:
    assert made(means=np.array(MEANS), class_weights=np.array(WEIGHTS)) == made() == made()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("means", MEANS[:5]),
        ("stds", STDS * 3),
        ("minimums", []),
        ("maximums", [*HIGHS, 1]),
        ("class_weights", [0.0, *WEIGHTS]),
    ],
)
def test_another_number_of_values_is_an_error(name: str, values: Sequence[float]) -> None:
    with pytest.raises(ValueError, match=rf"have {len(values)} (statistics|weights)"):
        made(**{name: values})
