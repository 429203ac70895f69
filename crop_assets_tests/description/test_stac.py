"""The STAC catalogue as dictionaries: items, collection and stac-geoparquet, from tables alone."""

import copy
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import pystac
import pytest
import shapely

from crop_assets.chip_grid import chip_geobox, chip_id
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.description.stac import chip_item, collection, items_table, json_bytes, write_items
from crop_assets.errors import InputError
from crop_assets_tests.description.stac_schemas import VENDORED, problems
from resources.errors import IntegrityError

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
HOSTILE = "<script>alert(1)</script>](javascript:alert(1))\u2028\x1b[2J\"'\\"


def chip_index(chips: int = 1, split: str = "train", **changes: Any) -> gpd.GeoDataFrame:
    """As `chip_index` makes it, without all of its columns, around the middle of the United States."""
    ids = [chip_id(200 + number // 100, 300 + number % 100) for number in range(chips)]
    columns: dict[str, Any] = {
        "chip_id": ids,
        "split": split,
        "tile": "14SMG",
        "block": "40_60",
        **dict.fromkeys(("touches_train", "borders_train", "in_train_tile", "in_train_block"), False),
        "na_count": 0,
        "cdl_file": "2022_30m_cdls.tif",
        "cdl_release": "https://www.nass.usda.gov/2022_30m_cdls.zip",
        "cdl_sha256": "c" * 64,
        **dict.fromkeys((f"{name}_share" for name in CLASS_COLUMNS), 0.0),
        "class_3_share": 0.25,
        "class_4_share": 0.75,
        "image": [f"chips_filtered/{chip}_merged.tif" for chip in ids],
        "image_sha256": "a" * 64,
        "mask": [f"chips_filtered/{chip}.mask.tif" for chip in ids],
        "mask_sha256": "b" * 64,
    }
    for position, day in (("first", 72), ("middle", 162), ("last", 262)):
        columns |= {
            f"{position}_date": dt.date(2022, 1, 1) + dt.timedelta(days=day - 1),
            f"{position}_scene": f"HLS.S30.T14SMG.2022{day:03d}T172020.v2.0",
            f"{position}_cids": [[CID, "", CID, CID, CID, CID]] * chips,
            f"{position}_verified": True,
            f"bad_percent_{position}": 1.5,
        }
    boxes = [shapely.box(*chip_geobox(chip).boundingbox.bbox) for chip in ids]
    return gpd.GeoDataFrame(pd.DataFrame(columns | changes), geometry=boxes, crs="EPSG:5070")


def dataset_files(chips: pd.DataFrame) -> pd.DataFrame:
    images, masks = list(chips["image"]), list(chips["mask"])
    others = {
        "chips.parquet": "application/vnd.apache.parquet",
        "train_data.txt": "text/plain",
        "training_chips/chip_200_300_merged.tif": "image/tiff",
        "viewer/index.html": "text/html",
        "viewer/pack_0.js": "text/javascript",
        "band_stats/band_values_1.npy": "application/octet-stream",
        "exports/train_ids.txt": "text/plain",
    }
    names = [*images, *masks, *others]
    types = ["image/tiff"] * (2 * len(chips)) + list(others.values())
    return pd.DataFrame(
        {"file": names, "media_type": types, "bytes": range(100, 100 + len(names)), "sha256": "d" * 64}
    )


FINGERPRINT = {
    "fingerprint": "f" * 64,
    "recipe_sha256": "1" * 64,
    "inputs_sha256": "2" * 64,
    "outputs_sha256": "3" * 64,
    "inputs": 5,
    "outputs": 9,
}


def made(chips: gpd.GeoDataFrame, dataset: str = "small") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The collection and the items, as they are read from their files."""
    files = dataset_files(chips)
    sizes = dict(zip(files["file"], files["bytes"], strict=True))
    items = [chip_item(row, sizes, f"{dataset}-2022") for row in chips.to_dict("records")]
    described = collection(dataset, 2022, chips, [item["bbox"] for item in items], files, FINGERPRINT)
    return json.loads(json_bytes(described)), [json.loads(json_bytes(item)) for item in items]


def links(stac: dict[str, Any], rel: str) -> list[str]:
    return [link["href"] for link in stac["links"] if link["rel"] == rel]


def test_an_item_has_what_the_index_has() -> None:
    chips = chip_index()
    _, (item,) = made(chips)
    assert problems(item) == []
    properties = item["properties"]
    assert item["id"] == "chip_200_300"
    assert (properties["datetime"], properties["start_datetime"], properties["end_datetime"]) == (
        None,
        "2022-03-13T00:00:00Z",
        "2022-09-19T23:59:59Z",
    )
    assert properties["proj:code"] == "EPSG:5070"
    assert properties["proj:transform"] == [30, 0, 300 * 6720 - 2356095, 0, -30, 3172605 - 200 * 6720]
    assert properties["proj:bbox"] == list(chips.geometry[0].bounds)
    assert properties["ml-aoi:split"] == "train"
    assert properties["crops:class_share"]["corn"] == 0.25
    assert sum(properties["crops:class_share"].values()) == 1
    assert "crops:purity_percent" not in properties

    # the same place, by another way to it
    outline = shapely.geometry.shape(item["geometry"])
    assert outline.exterior.is_ccw
    assert shapely.equals_exact(
        gpd.GeoSeries([outline], crs="EPSG:4326").to_crs("EPSG:5070")[0].normalize(),
        chips.geometry[0].normalize(),
        tolerance=0.02,
    )
    assert item["bbox"] == list(outline.bounds)

    image, mask = item["assets"]["image"], item["assets"]["mask"]
    assert image["href"] == "../../chips_filtered/chip_200_300_merged.tif"
    assert (image["file:checksum"], image["file:size"]) == ("1220" + "a" * 64, 100)
    assert (mask["file:checksum"], mask["file:size"]) == ("1220" + "b" * 64, 101)
    assert len(image["bands"]) == 18
    assert image["bands"][7]["name"] == "middle_B03"
    assert image["bands"][7]["description"] == "green, 2022-06-11"
    classes = mask["classification:classes"]
    assert [one["value"] for one in classes] == list(range(14))
    assert {one["name"]: one["count"] for one in classes if one["count"]} == {
        "corn": 224 * 56,
        "soybeans": 224 * 168,
    }
    assert [one["value"] for one in classes if one["nodata"]] == [0]

    catalogue = "https://cmr.earthdata.nasa.gov/stac/LPCLOUD/collections/HLSS30_2.0/items"
    assert links(item, "derived_from") == [f"{catalogue}/{scene}" for scene in properties["crops:scenes"]]
    assert links(item, "via") == [f"ipfs://{CID}"] * 15 + ["https://www.nass.usda.gov/2022_30m_cdls.zip"]
    titles = [link.get("title") for link in item["links"] if link["rel"] == "via"]
    assert titles[1] == "HLS.S30.T14SMG.2022072T172020.v2.0.B04.tif", "B03 has no CID"


def test_landsat_scenes_have_their_own_files_and_collection() -> None:
    chips = chip_index(middle_scene="HLS.L30.T14SMG.2022162T172020.v2.0")
    described, (item,) = made(chips)
    assert problems(item) == problems(described) == []
    assert item["properties"]["instruments"] == ["msi", "oli"]
    assert "/HLSL30_2.0/items/HLS.L30.T14SMG." in links(item, "derived_from")[1]
    titles = [link["title"] for link in item["links"] if link["rel"] == "via"]
    assert "HLS.L30.T14SMG.2022162T172020.v2.0.B05.tif" in titles
    assert [link.split("/")[-1] for link in links(described, "derived_from")] == ["HLSL30_2.0", "HLSS30_2.0"]
    assert {provider["name"] for provider in described["providers"]} >= {"United States Geological Survey"}


def test_the_collection_covers_its_items_and_names_the_other_files() -> None:
    chips = chip_index(3, split=["train", "train", "validation"], tile=["14SMG", "14SNG", "14SMG"])  # type: ignore[arg-type]
    described, items = made(chips)
    assert problems(described) == []
    assert [problems(item) for item in items] == [[], [], []]
    assert described["summaries"]["ml-aoi:split"] == ["train", "validate"]
    assert described["summaries"]["crops:tile"] == ["14SMG", "14SNG"]
    assert described["crops:chips"] == {"train": 2, "validation": 1, "test": 0}
    assert described["version"] == "f" * 64
    outlines = gpd.GeoSeries([shapely.geometry.shape(item["geometry"]) for item in items])
    assert described["extent"]["spatial"]["bbox"] == [outlines.total_bounds.tolist()]
    assert described["extent"]["temporal"]["interval"] == [["2022-03-13T00:00:00Z", "2022-09-19T23:59:59Z"]]
    assert links(described, "item") == [f"./items/{item['id']}.json" for item in items]
    assert {name: asset["href"] for name, asset in described["assets"].items()} == {
        "chips.parquet": "../chips.parquet",
        "train_data.txt": "../train_data.txt",
        "viewer/index.html": "../viewer/index.html",
        "items": "./items.parquet",
    }
    assert described["assets"]["chips.parquet"]["roles"] == ["data"]
    assert described["assets"]["train_data.txt"]["file:checksum"] == "1220" + "d" * 64
    # STAC Browser has a list for several, on which Chromium crashes
    assert len(links(described, "license")) == 1
    assert "[Sentinel-2](https://sentinels.copernicus.eu/" in described["description"]
    assert described["item_assets"]["image"]["bands"][17]["name"] == "last_B12"
    assert described["item_assets"]["image"]["bands"][17]["description"] == "short-wave infrared 2, last"


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "projection": lambda item: item["properties"].update({"proj:code": 5070}),
    "file": lambda item: item["assets"]["image"].update({"file:checksum": "sha256:abc"}),
    "classification": lambda item: item["assets"]["mask"]["classification:classes"][3].update(
        name="Corn & co"
    ),
    "item-spec": lambda item: item["properties"].pop("end_datetime"),
    "eo": lambda item: item["assets"]["image"]["bands"][0].update({"eo:common_name": "nir_narrow"}),
    "raster": lambda item: item["assets"]["image"].update({"raster:scale": "0.0001"}),
    "ml-aoi": lambda item: item["properties"].update({"ml-aoi:split": "validation"}),
}


@pytest.mark.parametrize("schema", BREAKS)
def test_the_schemas_find_what_is_wrong(schema: str) -> None:
    _, (item,) = made(chip_index())
    broken = copy.deepcopy(item)
    BREAKS[schema](broken)
    assert problems(item) == []
    assert problems(broken)
    assert all(schema in problem for problem in problems(broken)), problems(broken)


def test_the_vendored_schemas_are_those_of_their_names() -> None:
    ids = {path.stem: json.loads(path.read_text())["$id"] for path in VENDORED.glob("*.json")}
    assert len(ids) == 4
    for stem, found in ids.items():
        name, version = stem.split("-v")
        assert found.rstrip("#") == f"https://stac-extensions.github.io/{name}/v{version}/schema.json"


def test_facts_that_are_missing_are_left_out() -> None:
    local = chip_index(cdl_release="", first_cids=[[""] * 6], middle_cids=[[""] * 6], last_cids=[[""] * 6])
    _, (item,) = made(local.assign(purity_percent=91.5, confidence_percent=float("nan")))
    assert problems(item) == []
    assert links(item, "via") == []
    assert "crops:cdl_release" not in item["properties"]
    assert item["properties"]["crops:cdl_file"] == "2022_30m_cdls.tif"
    assert item["properties"]["crops:purity_percent"] == 91.5
    assert "crops:confidence_percent" not in item["properties"]


@pytest.mark.parametrize(
    "release",
    [
        HOSTILE,
        "javascript:alert(1)",
        "2022_30m_cdls.zip",
        "https://a b",
        "http://a.example/x.zip",
        "https://",
        "https://name:word@a.example/x.zip",
        r"https://a\@b.example/x.zip",
        "http://127.0.0.1:8000/x.zip",
    ],
)
def test_a_release_is_linked_only_by_https(release: str) -> None:
    _, (item,) = made(chip_index(cdl_release=release))
    assert problems(item) == []
    assert [link for link in links(item, "via") if not link.startswith("ipfs://")] == []
    assert item["properties"]["crops:cdl_release"] == release


def test_files_are_ascii_in_one_line() -> None:
    _, (item,) = made(chip_index(cdl_release=HOSTILE))
    written = json_bytes(item)
    assert written.isascii()
    assert written.count(b"\n") == 1
    assert b"\x1b" not in written


def test_an_invalid_scene_makes_no_link() -> None:
    with pytest.raises(IntegrityError, match="is not an HLS scene id"):
        made(chip_index(last_scene="../../evil"))


def test_a_chip_whose_file_is_not_listed_is_refused() -> None:
    chips = chip_index()
    with pytest.raises(InputError, match=r"chip_200_300_merged\.tif is not in the table dataset_files"):
        chip_item(chips.to_dict("records")[0], {}, "small-2022")


def items_of(path: Path) -> list[dict[str, Any]]:
    """The items of a file of stac-geoparquet, by its specification."""
    outer = (
        "type",
        "stac_version",
        "stac_extensions",
        "id",
        "links",
        "assets",
        "collection",
        "bbox",
        "geometry",
    )

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if one is not None}
        if isinstance(value, dt.datetime):
            return value.strftime("%Y-%m-%dT%H:%M:%SZ")
        return [plain(one) for one in value] if isinstance(value, list) else value

    found = []
    for row in pq.read_table(path).to_pylist():
        item = {key: plain(row[key]) for key in outer if key not in ("geometry", "bbox")}
        item["bbox"] = [row["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
        item["geometry"] = json.loads(shapely.to_geojson(shapely.from_wkb(row["geometry"])))
        properties = {
            key: plain(value) for key, value in row.items() if key not in outer and value is not None
        }
        found.append(item | {"properties": {"datetime": None} | properties})
    return found


def test_geoparquet_has_the_same_items(tmp_path: Path) -> None:
    # the second table has a column that the first has not, and the first links that the second has not
    first = chip_index(2)
    second = chip_index(3).iloc[2:].assign(purity_percent=88.0, cdl_release="")
    items = [*made(first)[1], *made(second)[1]]
    for name in ("a.parquet", "b.parquet"):
        write_items(tmp_path / name, [items_table(items[:2]), items_table(items[2:])], [-100, 30, -90, 40])
    assert items_of(tmp_path / "a.parquet") == items
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    metadata = pq.read_schema(tmp_path / "a.parquet").metadata
    assert json.loads(metadata[b"stac-geoparquet"]) == {"version": "1.0.0"}
    assert json.loads(metadata[b"geo"])["version"] == "1.1.0"
    frame = gpd.read_parquet(tmp_path / "a.parquet")
    assert pyproj.CRS(frame.crs).equals(pyproj.CRS("OGC:CRS84"))
    assert [shapely.geometry.mapping(one)["type"] for one in frame.geometry] == ["Polygon"] * 3
    assert str(frame["start_datetime"].dtype).endswith("UTC]")
    assert len(gpd.read_parquet(tmp_path / "a.parquet", bbox=tuple(items[0]["bbox"]))) >= 1


def test_5000_chips(tmp_path: Path) -> None:
    chips = chip_index(5000, split=["train", "validation"] * 2500)  # type: ignore[arg-type]
    described, items = made(chips)
    assert len({item["id"] for item in items}) == len(links(described, "item")) == 5000
    assert problems(described) == problems(items[0]) == problems(items[-1]) == []
    assert max(len(json_bytes(item)) for item in items) < 16_000
    write_items(tmp_path / "items.parquet", [items_table(items)], described["extent"]["spatial"]["bbox"][0])
    assert (tmp_path / "items.parquet").stat().st_size < 5_000_000
    frame = gpd.read_parquet(tmp_path / "items.parquet", columns=["id", "geometry", "ml-aoi:split"])
    assert (frame["ml-aoi:split"] == "validate").sum() == 2500
    assert frame.total_bounds.tolist() == described["extent"]["spatial"]["bbox"][0]


def test_pystac_walks_the_catalogue(tmp_path: Path) -> None:
    described, items = made(chip_index(3))
    (tmp_path / "items").mkdir()
    (tmp_path / "collection.json").write_bytes(json_bytes(described))
    for item in items:
        (tmp_path / "items" / f"{item['id']}.json").write_bytes(json_bytes(item))
    opened = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    assert opened.extent.spatial.bboxes == described["extent"]["spatial"]["bbox"]
    walked = list(opened.get_items(recursive=True))
    assert [one.id for one in walked] == [item["id"] for item in items]
    for one, item in zip(walked, items, strict=True):
        assert one.get_collection() is one.get_root() is opened
        assert one.ext.proj.code == "EPSG:5070"
        assert one.assets["image"].get_absolute_href() == str(
            tmp_path.parent / item["assets"]["image"]["href"].removeprefix("../../")
        )
        assert one.to_dict(include_self_link=False)["assets"] == item["assets"]
