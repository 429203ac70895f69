"""The stage of the STAC catalogue."""

import hashlib

import geopandas as gpd
import pandas as pd

from crop_assets.description.stac import (
    COLLECTION,
    ITEMS_PARQUET,
    chip_item,
    collection,
    item_name,
    items_table,
    json_bytes,
    write_items,
)
from crop_assets.graph.stage import Made, YearRun, stage
from crop_assets.progress import Progress
from crop_assets.schemas import STAC_CATALOGUE
from resources.parallel import in_parallel
from resources.stop import StoppablePool

_BATCH = 500
"""Items in memory: some 50 kB each."""
_WRITES_AT_ONCE = 16
"""An object store takes some time for each file, in which the processor is idle."""


@stage("description", STAC_CATALOGUE, kinds={"stac", "geoparquet"})
def stac_catalogue(
    run: YearRun, chip_index: gpd.GeoDataFrame, dataset_files: pd.DataFrame, fingerprint: pd.DataFrame
) -> Made:
    """The dataset as a static STAC 1.1 catalogue, `stac/collection.json`, with an item a chip in `stac/items/`: place,
    dates, bands, classes and their shares, split, checksums, and links to the scenes, their CIDs and the CDL release;
    and the items as stac-geoparquet, `stac/items.parquet`. Links within the dataset are relative.
    """
    sizes = dict(zip(dataset_files["file"], dataset_files["bytes"], strict=True))
    dataset = f"{run.recipe.dataset}-{run.year}"
    report = Progress(run.log, len(chip_index), "items written")
    rows: list[tuple[str, str, int, str]] = []
    tables, bboxes = [], []

    def write(kind: str, name: str, data: bytes) -> tuple[str, str, int, str]:
        run.store.write_bytes(run.layout.file(name), data)
        return name, kind, len(data), hashlib.sha256(data).hexdigest()

    with StoppablePool(_WRITES_AT_ONCE) as pool:
        for start in range(0, len(chip_index), _BATCH):
            chips = chip_index.iloc[start : start + _BATCH].drop(columns="geometry").to_dict("records")
            items = [chip_item(chip, sizes, dataset) for chip in chips]
            rows += in_parallel(
                pool, lambda item: write("item", item_name(item["id"]), json_bytes(item)), items
            )
            tables.append(items_table(items))
            bboxes += [item["bbox"] for item in items]
            report(len(rows))
    described = collection(
        run.recipe.dataset, run.year, chip_index, bboxes, dataset_files, fingerprint.to_dict("records")[0]
    )
    file = run.layout.file(ITEMS_PARQUET)
    with run.store.writing(file) as path:
        write_items(path, tables, described["extent"]["spatial"]["bbox"][0])
        data = path.read_bytes()
    rows.append((ITEMS_PARQUET, "geoparquet", len(data), hashlib.sha256(data).hexdigest()))
    # last, so that it names no item that is not there
    rows.append(write("collection", COLLECTION, json_bytes(described)))
    table = pd.DataFrame(rows, columns=["file", "kind", "bytes", "sha256"]).sort_values(
        "file", ignore_index=True
    )
    files = {
        run.layout.file(name): sha256 for name, sha256 in zip(table["file"], table["sha256"], strict=True)
    }
    return Made(table, {"items": len(chip_index), "bytes": int(table["bytes"].sum())}, files)
