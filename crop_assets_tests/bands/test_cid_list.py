"""Lists of CIDs: the forms in use, and lists that are refused by entry."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crop_assets.bands.cid_list import parse_cid_list
from crop_assets.bands.cids import MAX_BAND_BYTES, listed_cid_rows, tile_payloads
from crop_assets.errors import InputError
from crop_assets.hls import BANDS
from crop_assets.scenes.scene_list import listed_rows, parse_scene_list

SCENE = "HLS.S30.T14SMG.2022112T172221.v2.0"
LANDSAT = "HLS.L30.T14SNG.2022112T172221.v2.0"
FILE = f"{SCENE}.B02.tif"
V0 = "QmR5JnZWA77PtXZCkiu4yLgbztXr3cmktXZGgFJx7AWeTD"
V1 = "bafybeib77f7bspur2pekd4nbodseysl2cdf5zsm4smtp25pi625smg3hzy"
ENTRY = {"filename": FILE, "cid": V1}


def parsed(document: Any) -> dict[str, dict[str, str]]:
    return parse_cid_list(json.dumps(document).encode(), "cids.json")


def scenes(*names: str) -> pd.DataFrame:
    rows = parse_scene_list("\n".join(["scene_id", *names]).encode(), "list.csv")
    table = pd.concat([listed_rows(of_tile) for of_tile in rows.values()])
    return table.assign(position="first")


def test_the_cids_of_33_real_scenes_arrive_at_their_files(real: Path) -> None:
    path = real / "tables/filename_to_cid_mapping.json"
    theirs = {entry["filename"]: entry["cid"] for entry in json.loads(path.read_text())}
    cids = parse_cid_list(path.read_bytes(), str(path))
    selected = pd.read_csv(real / "tables/selected_scenes_published.csv")["title_id"].unique()
    arrived: dict[str, str] = {}
    for tile in {name[9:14] for name in selected}:
        of_tile = scenes(*(name for name in selected if name[9:14] == tile))
        rows = listed_cid_rows(of_tile, cids.get(tile, {}), "mapping.json")
        assert len(rows) == 7 * len(of_tile)
        arrived |= dict(zip(rows["file"], rows["cid"], strict=True))
        assert ((rows["cid"] == "") == (rows["problem"] == "mapping.json has no CID of this file")).all()
    assert len(theirs) == 231
    assert {file: cid for file, cid in arrived.items() if cid} == theirs
    assert len(arrived) == 7 * 51


def test_a_list_and_our_own_payloads_are_read_alike() -> None:
    files = [f"{SCENE}.{band}.tif" for band in BANDS] + [f"{LANDSAT}.B05.tif"]
    entries = [{"filename": file, "cid": V0 if "Fmask" in file else V1} for file in files]
    cids = parsed(entries)
    assert cids == {
        "14SMG": {file: V0 if "Fmask" in file else V1 for file in files[:-1]},
        "14SNG": {files[-1]: V1},
    }
    rows = listed_cid_rows(scenes(SCENE, LANDSAT), cids["14SMG"] | cids["14SNG"], "cids.json")
    assert parsed(tile_payloads(rows)) == cids
    landsat = rows[rows["scene_id"] == LANDSAT].set_index("band")
    assert landsat.loc["B8A", ["file", "cid", "problem"]].tolist() == [files[-1], V1, ""]
    assert set(rows["max_bytes"]) == {MAX_BAND_BYTES}
    assert rows["http"].str.startswith("https://data.lpdaac.earthdatacloud.nasa.gov/").all()


def test_a_cid_is_stored_in_one_spelling_and_an_unknown_one_is_left_out() -> None:
    in_base16 = "f0155122028d2f1c4c9a1c5b2e34f0f2b83d9c6e28cda8a0cf9a6d3c2c4d18a5e6b7f9012"
    (stored,) = parsed([ENTRY | {"cid": f" {in_base16}\n"}])["14SMG"].values()
    assert stored.startswith("bafkrei")
    # the same CID twice, and files whose CID nobody knows, as tile_payloads.json has them
    other = {"filename": f"{SCENE}.B03.tif", "cid": "", "band_name": "B03"}
    assert parsed({SCENE: [ENTRY, ENTRY, other]}) == {"14SMG": {FILE: V1}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"cids.json lists no CID; it must be a list of \{filename, cid\}, or an object of such lists"),
        ({}, "cids.json lists no CID"),
        ([ENTRY | {"cid": ""}], "cids.json lists no CID"),
        (5, "cids.json is not a list; it must be"),
        ({SCENE: V1}, f"cids.json, of '{SCENE}' is not a list; it must be"),
        ({FILE: V1}, "is not a list; it must be"),
        ([ENTRY, V1], "cids.json, entry 2: filename '' is not that of an HLS file, such as"),
        ([{"cid": V1}], "cids.json, entry 1: filename '' is not"),
        ([ENTRY | {"filename": 5}], "entry 1: filename '' is not"),
        ([ENTRY | {"filename": f"../{FILE}"}], "entry 1: filename '../HLS"),
        ([ENTRY | {"filename": f"{SCENE}/../x.B02.tif"}], "entry 1: filename "),
        ([ENTRY | {"filename": f"{FILE}\n"}], "entry 1: filename "),
        ([ENTRY | {"filename": f"{SCENE}.B02.jpg"}], "entry 1: filename "),
        ([ENTRY | {"filename": FILE.replace("112T", "366T")}], "entry 1: .* day 366, which does not exist"),
        ({LANDSAT: [ENTRY]}, f"cids.json, entry 1 of '{LANDSAT}': {FILE} is a file of another scene"),
        ([ENTRY | {"cid": V1[:-1]}], f"entry 1: {FILE}: '{V1[:-1]}' is not a CID .*; correct it, or leave"),
        ([ENTRY | {"cid": f"ipfs://{V1}"}], "entry 1: .* is not a CID"),
        ([{"filename": FILE}], f"entry 1: {FILE} has no cid; an unknown one is an empty text"),
        ([ENTRY | {"cid": None}], "entry 1: .* has no cid"),
        ([ENTRY, ENTRY | {"cid": V0}], f"entry 2: {FILE} has two CIDs, {V1} and {V0}; leave one"),
    ],
)
def test_a_malformed_list_is_refused_by_file_and_entry(document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(document)


@pytest.mark.parametrize("data", [b"", b"\xff", b"filename,cid\n", b"[" * 100, b"[" + b"0," * 2_000_001])
def test_what_is_no_json_or_far_too_large_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"cids\.json is not JSON: .*; it must be a list of"):
        parse_cid_list(data, "cids.json")
