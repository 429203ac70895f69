import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crop_assets.bands import cids
from crop_assets.bands.cids import MAX_BAND_BYTES, tile_payloads
from resources.errors import IntegrityError, NotFoundError, UnavailableError
from resources.ipfs.cid import Cid
from resources.stac import SET_ASIDE

SCENE = "HLS.S30.T14SMG.2022112T172221.v2.0"
FILES = ["B02", "B03", "B04", "B8A", "B11", "B12", "Fmask"]
V0 = "QmR5JnZWA77PtXZCkiu4yLgbztXr3cmktXZGgFJx7AWeTD"
V1 = "bafybeib77f7bspur2pekd4nbodseysl2cdf5zsm4smtp25pi625smg3hzy"
GRANULE_BYTES = 224_507_670
LINK = "https://data.lpdaac.earthdatacloud.nasa.gov/x.B03.tif"


def scenes(*names: str) -> pd.DataFrame:
    rows = []
    for name in names:
        links = {f"{band}_http": f"https://lpdaac/{name}.{band}.tif" for band in FILES}
        named = {"scene_id": name, "position": "first", "date": "2022-04-22", "granule_bytes": GRANULE_BYTES}
        rows.append(named | links)
    return pd.DataFrame(rows)


def resolve(cid: Cid, path: Sequence[str]) -> Cid:
    """The content at a path of the only folder, V1: a file, nothing, an error, or no answer."""
    assert str(cid) == V1
    match path[-1]:
        case "B03.tif":
            return Cid.parse(V0)
        case "none.tif":
            raise NotFoundError("no such entry")
        case "broken.tif":
            raise IntegrityError("that is no directory")
    raise UnavailableError("nobody answers")


def cid_rows(scenes: pd.DataFrame, items: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return cids.cid_rows(scenes, items, resolve)


def read(asset: Any) -> tuple[str, str]:
    """CID and problem of the file B03 of a scene that has this asset."""
    rows = cid_rows(scenes(SCENE), [{"id": SCENE, "assets": {"B03": asset}}]).set_index("band")
    return rows.loc["B03", "cid"], rows.loc["B03", "problem"]


@pytest.mark.parametrize("cid", [V0, V1])
@pytest.mark.parametrize(
    "asset",
    [
        {"href": LINK, "alternate": {"IPFS": {"href": "ipfs://CID"}}},
        {"href": LINK, "alternate": {"s3": {"href": "s3://a/b"}, "ipfs": {"href": "ipfs://CID"}}},
        {"alternate": {"ipfs": {"cid": "CID"}}},
        {"alternate": {"IPFS": {"cid": "CID", "href": ""}}},
        {"alternate": {"IPFS": {}, "ipfs": {"href": "ipfs://CID"}}},
        {"alternate": {"IPFS": {"href": "ipfs://CID/"}}},
        {"alternate": {"IPFS": {"href": " ipfs://CID\n"}}},
        {"alternate": {"IPFS": {"href": "ipfs://CID and more"}}},
        {"alternate": {"IPFS": {"href": "ipfs://CID?filename=HLS.B03.tif"}}},
        {"alternate": {"IPFS": {"href": "ipfs://CID#B03"}}},
        {"alternate": {"IPFS": {"href": "ipfs://ipfs/CID"}}},
        {"alternate": {"IPFS": {"href": "/ipfs/CID"}}},
        {"alternate": {"IPFS": {"href": "https://ipfs.io/ipfs/CID?download=true"}}},
        {"href": "ipfs://CID"},
    ],
)
def test_a_cid_is_read_from_every_form_in_use(asset: dict[str, Any], cid: str) -> None:
    assert read(json.loads(json.dumps(asset).replace("CID", cid))) == (cid, "")


def test_a_cid_in_another_base_is_written_in_base32() -> None:
    in_base16 = "f" + bytes(Cid.parse(V1)).hex()
    assert read({"alternate": {"ipfs": {"cid": in_base16}}}) == (V1, "")


@pytest.mark.parametrize("path", ["a/B03.tif", "B03.tif", "a%20b/B03.tif", "a/B03.tif?filename=x"])
def test_a_path_in_a_folder_is_resolved_to_the_cid_of_the_file(path: str) -> None:
    assert read({"alternate": {"IPFS": {"href": f"ipfs://{V1}/{path}"}}}) == (V0, "")


@pytest.mark.parametrize(("name", "why"), [("none", "no such entry"), ("broken", "that is no directory")])
def test_a_path_that_leads_to_no_file_is_reported(name: str, why: str) -> None:
    href = f"ipfs://{V1}/{name}.tif"
    assert read({"alternate": {"IPFS": {"href": href}}}) == ("", f"{href} leads to no file: {why}")


def test_a_folder_that_is_not_available_now_is_an_error() -> None:
    """Otherwise it would be stored as a file without a CID."""
    with pytest.raises(UnavailableError, match="nobody answers"):
        read({"alternate": {"IPFS": {"href": f"ipfs://{V1}/other.tif"}}})


@pytest.mark.parametrize(
    ("told", "granule", "size", "most"),
    [
        (17_000_000, 200_000_000, 17_000_000, 17_000_000),
        (None, 200_000_000, 0, 200_000_000),
        (None, 0, 0, MAX_BAND_BYTES),
        (None, 119, 0, MAX_BAND_BYTES),
        (None, 1 << 40, 0, MAX_BAND_BYTES),
        (0, 0, 0, MAX_BAND_BYTES),
        (-1, 0, 0, MAX_BAND_BYTES),
        ("17", 0, 0, MAX_BAND_BYTES),
        (1 << 40, 0, 0, MAX_BAND_BYTES),
        (True, 0, 0, MAX_BAND_BYTES),
        (119, 0, 0, MAX_BAND_BYTES),
        (float("nan"), 0, 0, MAX_BAND_BYTES),
        (float("inf"), 0, 0, MAX_BAND_BYTES),
        (10**400, 0, 0, MAX_BAND_BYTES),
        ([17_000_000], 0, 0, MAX_BAND_BYTES),
        (17_000_000.0, 0, 17_000_000, 17_000_000),
    ],
)
def test_the_metadata_limit_the_size_of_a_file(told: Any, granule: int, size: int, most: int) -> None:
    item = {"id": SCENE, "assets": {"B03": {"file:size": told}}}
    rows = cid_rows(scenes(SCENE).assign(granule_bytes=granule), [item]).set_index("band")
    assert (rows.loc["B03", "bytes"], rows.loc["B03", "max_bytes"]) == (size, most)


@pytest.mark.parametrize(
    "href",
    [
        "ipfs://",
        "ipfs://not-a-cid",
        f"ipfs://{V1[:58]}",
        f"ipfs://{V1}x",
        f"ipfs://{V1}.tif",
        f"ipfs://{V1[:-1]}A",
        f"ipfs://{V0[:-1]}",
        f"ipfs://{V0[:-1]}0",
        f"ipfs://{V1}/../B03.tif",
        LINK,
    ],
)
def test_a_malformed_cid_is_named(href: str) -> None:
    cid, problem = read({"alternate": {"IPFS": {"href": href}}})
    assert cid == ""
    assert problem.startswith("malformed CID: ")
    assert href in problem


@pytest.mark.parametrize(
    "asset",
    [
        {"href": LINK},
        {"href": LINK, "alternate": None},
        {"href": LINK, "alternate": {"s3": {"href": "s3://a/b"}}},
        {"href": LINK, "alternate": {"IPFS": None, "ipfs": {}}},
        {"href": LINK, "alternate": {"IPFS": [V1], "ipfs": f"ipfs://{V1}"}},
        {"href": LINK, "alternate": [{"href": f"ipfs://{V1}"}]},
        LINK,
    ],
)
def test_an_asset_without_an_ipfs_address_is_reported(asset: Any) -> None:
    assert read(asset) == ("", "the IPFS catalogue gives no IPFS address")


@pytest.mark.parametrize("item", [{"id": SCENE}, {"id": SCENE, "assets": None}, {"id": SCENE, "assets": {}}])
def test_a_band_that_is_not_listed_is_reported(item: dict[str, Any]) -> None:
    rows = cid_rows(scenes(SCENE), [item])
    assert rows["problem"].unique().tolist() == ["the IPFS catalogue does not list this band"]


def test_an_item_that_cannot_be_read_is_named_by_its_place() -> None:
    unread = [{"id": f"item {at} of the answer", SET_ASIDE: "has no id"} for at in (2, 5)]
    other = {"id": SCENE, "assets": {"B03": {"alternate": {"IPFS": {"href": f"ipfs://{V1}"}}}}}
    rows = cid_rows(scenes(SCENE, SCENE.replace("112", "132")), [other, *unread])
    assert (rows["cid"] != "").sum() == 1
    assert set(rows["problem"][7:]) == {
        "the IPFS catalogue does not have this scene; item 2 of the answer has no id; item 5 of the answer has no id"
    }


def test_each_scene_has_a_row_for_each_file_even_if_the_catalogue_lacks_it() -> None:
    other = SCENE.replace("112", "132")
    items = [{"id": SCENE, "assets": {"B03": {"alternate": {"IPFS": {"href": f"ipfs://{V1}"}}}}}]
    rows = cid_rows(scenes(SCENE, other), items)
    assert rows.groupby("scene_id")["band"].apply(list).to_dict() == {SCENE: FILES, other: FILES}
    row = rows.set_index(["scene_id", "band"]).loc[(SCENE, "B03")]
    assert row.to_dict() == {
        "position": "first",
        "date": "2022-04-22",
        "file": f"{SCENE}.B03.tif",
        "cid": V1,
        "problem": "",
        "http": f"https://lpdaac/{SCENE}.B03.tif",
        "bytes": 0,
        "max_bytes": GRANULE_BYTES,
    }
    missing = rows[rows["scene_id"] == other]
    assert missing["problem"].unique().tolist() == ["the IPFS catalogue does not have this scene"]
    assert (rows["cid"] == "").sum() == 13


@pytest.mark.parametrize("path", ["015033_20221015_20221015", "019046_20211031_20220118"])
def test_the_cids_of_real_items_are_read(real: Path, path: str) -> None:
    item = json.loads((real / "stac" / f"LC09_L1TP_{path}_02_T1_stac.json").read_text())
    on_ipfs = {name: asset for name, asset in item["assets"].items() if "IPFS" in asset.get("alternate", {})}
    assert len(on_ipfs) > 15
    for asset in on_ipfs.values():
        assert read(asset) == (asset["alternate"]["IPFS"]["href"].removeprefix("ipfs://"), "")
    for name in item["assets"].keys() - on_ipfs.keys():
        assert read(item["assets"][name]) == ("", "the IPFS catalogue gives no IPFS address")


def test_the_payloads_are_those_of_the_real_mapping(real: Path) -> None:
    """33 scenes x 7 files, published by name and CID."""
    mapping = json.loads((real / "tables" / "filename_to_cid_mapping.json").read_text())
    items: dict[str, dict[str, Any]] = {}
    for entry in mapping:
        scene, band, _ = entry["filename"].rsplit(".", 2)
        item = items.setdefault(scene, {"id": scene, "assets": {}})
        item["assets"][band] = {"alternate": {"IPFS": {"href": f"ipfs://{entry['cid']}"}}}
    payloads = tile_payloads(cid_rows(scenes(*items), list(items.values())))
    assert len(payloads) == 33
    assert list(payloads) == sorted(items)
    for scene, files in payloads.items():
        assert [sorted(file) for file in files] == [["band_name", "cid", "filename"]] * 7
        assert [file["band_name"] for file in files] == sorted(FILES)
        assert {file["filename"] for file in files} == {f"{scene}.{band}.tif" for band in FILES}
    found = {(file["filename"], file["cid"]) for files in payloads.values() for file in files}
    assert found == {(entry["filename"], entry["cid"]) for entry in mapping}


def test_a_file_without_a_cid_is_still_in_the_payload() -> None:
    payloads = tile_payloads(cid_rows(scenes(SCENE), []))
    assert [file["cid"] for file in payloads[SCENE]] == [""] * 7
