"""The stage `viewer`: a page that shows the chips of a dataset."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import pandas as pd

from crop_assets.dataset.splits import BUFFER, UNASSIGNED
from crop_assets.graph.stage import AllTiles, Made, Source, YearRun, stage
from crop_assets.leaflet import LICENCE, leaflet_folder
from crop_assets.progress import Progress
from crop_assets.schemas import VIEWER
from crop_assets.viewer.facts import facts_text, viewer_facts
from crop_assets.viewer.packs import CHIPS_PER_PACK, pack_name, pack_text, read_pictures
from resources.machine import Machine
from resources.parallel import in_parallel

_PAGE = Path(__file__).parent / "page"


def _page() -> Source:
    """The files of the page that are the same for each dataset, by name."""
    files = {path.name: path.read_bytes() for path in sorted(_PAGE.iterdir()) if path.is_file()}
    for name in ("leaflet.js", "leaflet.css"):
        files[f"leaflet/{name}"] = (leaflet_folder() / name).read_bytes()
    files["leaflet/LICENSE"] = LICENCE.encode()
    return Source(files, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


@stage("readers", VIEWER, kinds={"html"}, fields=["split"], source=_page)
def viewer(
    run: YearRun,
    splits: pd.DataFrame,
    chip_bboxes: gpd.GeoDataFrame,
    tile_map: pd.DataFrame,
    label_quality: pd.DataFrame,
    chips: AllTiles,
    filtered_chips: AllTiles,
    downloaded_bands: AllTiles,
    source: dict[str, bytes],
    machine: Machine,
) -> Made:
    """`viewer/index.html`, a page that opens from the file system, without a server or network: a map of all chip
    boxes, and of each the three dates in colour, mask, Fmask, figures, scenes with CIDs, and why it is not in the
    dataset.
    """
    made = chips.frame[chips.frame["outcome"] == ""].sort_values("chip_id", ignore_index=True)
    facts = viewer_facts(
        run.recipe.dataset,
        run.year,
        splits,
        pd.DataFrame(chip_bboxes),
        tile_map,
        filtered_chips.frame,
        downloaded_bands.frame,
        missing=filtered_chips.missing,
        in_no_split=UNASSIGNED if run.recipe.split == "files" else BUFFER,
        pictured=set(made["chip_id"]),
        quality=label_quality,
    )
    pictured = _write_packs(run, made, machine)
    for name, data in {**source, "data.js": facts_text(facts).encode()}.items():
        run.store.write_bytes(run.layout.file(f"viewer/{name}"), data)
        pictured[name] = 0
    table = pd.DataFrame(
        [(f"viewer/{name}", count) for name, count in pictured.items()], columns=["file", "chips"]
    )
    files = [run.layout.file(name) for name in table["file"]]
    table["bytes"] = [run.store.size(name) for name in files]
    index = str(run.store.path(run.layout.file("viewer/index.html")))
    metadata = {
        "page": index,
        "chips": len(chip_bboxes),
        "with_pictures": len(made),
        "bytes": int(table["bytes"].sum()),
    }
    return Made(table, metadata, files)


def _write_packs(run: YearRun, made: pd.DataFrame, machine: Machine) -> dict[str, int]:
    """Write the packs of the chips that were made; returns the number of chips of each file."""
    report = Progress(run.log, len(made), "chips drawn")
    paths = made[["merged_path", "mask_path", "fmask_path"]].itertuples(index=False)
    files = [[run.store.gdal_path(name) for name in names] for names in paths]
    counts = {}

    def draw(at: int) -> dict[str, str]:
        return read_pictures(*files[at])

    with machine.pool() as pool:
        for number, start in enumerate(range(0, len(made), CHIPS_PER_PACK)):
            ids: Sequence[str] = list(made["chip_id"][start : start + CHIPS_PER_PACK])
            drawn = in_parallel(pool, draw, range(start, start + len(ids)))
            name = pack_name(number)
            run.write_text(f"viewer/{name}", pack_text(number, dict(zip(ids, drawn, strict=True))))
            counts[name] = len(ids)
            report(start + len(ids))
    return counts
