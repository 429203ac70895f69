"""What others published, as tables of facts: the strongest evidence that ours are the same."""

from pathlib import Path

import pandas as pd

from crop_assets.hls import POSITIONS

_FOLDER = Path(__file__).parent


def published_scenes() -> pd.DataFrame:
    """The candidate scenes of 19 tiles of 2022, and which of them the published dataset has.

    Columns: scene_id, tile (with its T), date, cloud_cover and spatial_coverage (percent), missing_bands (""),
    published_as (positions, "" for none). Each candidate once; the reference's list had 82 of them twice, so three of
    its tiles have one scene for two positions. From the history of
    easierdata/multi-temporal-crop-classification-training-data (Apache-2.0).
    """
    table = pd.read_csv(_FOLDER / "published_scenes.csv", keep_default_na=False)
    table["tile"] = table["scene_id"].str[8:14]
    table["date"] = pd.to_datetime(table["scene_id"].str[15:22], format="%Y%j").dt.date
    return table.astype({"cloud_cover": float, "spatial_coverage": float}).assign(missing_bands="")


def published_choice(tile: pd.DataFrame) -> list[str]:
    """The ids of the first, middle and last scene that the published dataset has of a tile; none if it has none."""
    positions = tile.set_index("scene_id")["published_as"].str.split().explode().dropna()
    return list(positions.sort_values(key=lambda names: names.map(POSITIONS.index)).index)
