"""Lists of scenes: the forms in use, what follows from a list, and lists that are refused by line."""

import datetime as dt
import json
from pathlib import Path

import pandas as pd
import pytest

from crop_assets.errors import InputError
from crop_assets.hls import BANDS
from crop_assets.scenes import scene_list
from crop_assets.scenes.granules import lp_daac_links
from crop_assets.scenes.scene_list import listed_rows, parse_scene_list, scenes_of_tile
from crop_assets.scenes.selection import chosen_scenes, listed_scenes
from crop_assets.schemas import SCENE_COLUMNS, SCENE_METADATA, SELECTED_SCENES

FIRST, MIDDLE, LAST = (f"HLS.S30.T14SMG.2022{day}T172221.v2.0" for day in ("072", "162", "262"))
OTHER = "HLS.L30.T14SNG.2022100T170000.v2.0"
HEADING = "title_id,tile_id,cloud_cover,spatial_cover,date\n"
SOUND = HEADING + "".join(f"{name},T{name[9:14]},1,99,2022-03-13\n" for name in (FIRST, MIDDLE, LAST, OTHER))


def selection(text: str, tile: str = "14SMG", year: int = 2022) -> pd.DataFrame:
    """What the stages make of a list for a tile."""
    scenes = scenes_of_tile(parse_scene_list(text.encode(), "list.csv"), tile, year, "list.csv")
    rows = listed_rows(scenes) if scenes else SCENE_METADATA.empty()
    table = listed_scenes(rows[[column.name for column in SCENE_COLUMNS]], "list.csv")
    for schema, frame in ((SCENE_METADATA, rows), (SELECTED_SCENES, table)):
        assert set(frame.columns) >= {column.name for column in schema.columns}
        schema.require_valid(frame)
    return table


def test_the_listed_scenes_of_18_real_tiles_are_first_middle_and_last(real: Path) -> None:
    path = real / "tables/selected_scenes_published.csv"
    text = path.read_text()
    exact = 0
    for tile, theirs in pd.read_csv(path).groupby("tile_id"):
        table = selection(text, str(tile).removeprefix("T"))
        chosen = chosen_scenes(table)
        if theirs["title_id"].nunique() < 3:
            # the reference chose a scene twice; here it counts once
            assert chosen.empty
            assert list(table["reason"]) == ["only 2 of 3 scenes are in list.csv"] * 2
            continue
        theirs = theirs.sort_values("date")
        assert list(chosen["position"]) == ["first", "middle", "last"]
        for ours, named in (
            ("scene_id", "title_id"),
            ("cloud_cover", "cloud_cover"),
            ("spatial_coverage", "spatial_cover"),
        ):
            assert list(chosen[ours]) == list(theirs[named])
        assert [str(day) for day in chosen["date"]] == list(theirs["date"])
        exact += 1
    assert exact == 15
    # a tile that the list lacks
    assert selection(text, "17SPC").empty


def test_positions_follow_from_the_dates_and_not_from_the_order_of_lines() -> None:
    lines = SOUND.splitlines(keepends=True)
    for order in ((0, 1, 2, 3, 4), (0, 3, 4, 2, 1), (0, 2, 1, 3, 4, 2)):
        table = selection("".join(lines[at] for at in order)).set_index("position")
        assert table["scene_id"].to_dict() == {"first": FIRST, "middle": MIDDLE, "last": LAST}
        assert table.loc["first", "date"] == dt.date(2022, 3, 13)
        assert table["fit"].all() and (table["reason"] == "").all()
        assert set(table["note"]) == {"in list.csv"}


def test_a_list_of_the_published_form_names_its_scenes_in_links() -> None:
    lines = ["tile_id,cloud_cover,date,spatial_cover,http_links,s3_links"]
    for name in (LAST, FIRST, MIDDLE):
        links = lp_daac_links(name)
        texts = ", ".join(f"'{band}': '{links[f'{band}_http']}'" for band in BANDS if band != "Fmask")
        asset = f"'Fmask': <Asset href={links['Fmask_http']}>"
        lines.append(f"T14SMG,4,2022-01-01,98,\"{{{texts}, {asset}}}\",\"{{'B02': 's3:/x/y.tif'}}\"")
    table = selection("\n".join(lines)).set_index("position")
    assert table["scene_id"].to_dict() == {"first": FIRST, "middle": MIDDLE, "last": LAST}
    assert set(table["cloud_cover"]) == {4} and set(table["spatial_coverage"]) == {98}


def test_columns_but_for_the_ids_are_optional_and_other_columns_are_ignored() -> None:
    text = "\ufeffnote, scene_id \r\n" + "".join(f'"a\nb",{name}\r\n' for name in (FIRST, MIDDLE, LAST))
    table = selection(text)
    assert list(table["scene_id"]) == [FIRST, MIDDLE, LAST]
    assert table[["cloud_cover", "spatial_coverage"]].isna().all(axis=None)


def test_scenes_of_another_year_are_not_the_tiles() -> None:
    earlier = "".join(line.replace(".2022", ".2021") for line in SOUND.splitlines(keepends=True)[1:3])
    assert list(selection(SOUND + earlier)["scene_id"]) == [FIRST, MIDDLE, LAST]
    table = selection(SOUND + earlier, year=2021)
    assert list(table["reason"]) == ["only 2 of 3 scenes are in list.csv"] * 2
    assert selection(SOUND, year=2020).empty


def test_links_are_those_of_a_real_item(real: Path) -> None:
    item = json.loads((real / "stac/HLS.S30.T14SMF.2021062T172221.v2.0.stac.json").read_text())
    links = lp_daac_links(item["id"])
    assert {band: links[f"{band}_http"] for band in BANDS} == {
        band: item["assets"][band]["href"] for band in BANDS
    }
    assert links["B02_s3"].startswith("s3://lp-prod-protected/HLSS30.020/HLS.S30.T14SMF.2021062")
    landsat = lp_daac_links(OTHER)["B8A_http"]
    assert landsat.endswith(f"/lp-prod-protected/HLSL30.020/{OTHER}/{OTHER}.B05.tif")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column title_id, scene_id or http_links with the HLS scenes; its heading is ''"),
        ("id,tile\na,b\n", "has no column .*; its heading is 'id,tile'"),
        (HEADING, " lists no scene"),
        (
            f"scene_id\n{FIRST}\n../../etc/passwd\n",
            r"line 3: '../../etc/passwd' is not an HLS scene",
        ),
        (f"scene_id\n{FIRST}/..\n", "line 2: .* is not an HLS scene id .*; correct scene_id"),
        (
            f"scene_id\n{FIRST.replace('072', '366')}\n",
            "line 2: .* has day 366, which does not exist in 2022",
        ),
        ("scene_id,note\n,x\n", "line 2: '' is not an HLS scene id"),
        (f"scene_id,note\n{FIRST},x,y\n", "line 2: it has more or fewer fields than the heading"),
        (f"scene_id,note\n{FIRST}\n", "line 2: it has more or fewer fields than the heading"),
        (f'scene_id\n"{FIRST}\n', "is not a CSV: unexpected end of data, in line 2"),
        (f'scene_id\n"{FIRST}"x\n', "is not a CSV: .* in line 2"),
        (f"scene_id,cloud_cover\n{FIRST},low\n", "line 2: cloud_cover is 'low', and must be from 0 to 100"),
        (f"scene_id,spatial_cover\n{FIRST},101\n", "line 2: spatial_cover is '101', and must be"),
        (f"scene_id,cloud_cover\n{FIRST},nan\n", "line 2: cloud_cover is 'nan'"),
        (f"scene_id,tile_id\n{FIRST},T14SNG\n", f"tile_id is 'T14SNG', and {FIRST} is a scene of 14SMG"),
        (
            "http_links\nnone\n",
            "line 2: the links of http_links must be of one HLS scene, and are none of an",
        ),
        (f"http_links\n/{FIRST}/a /{LAST}/b\n", f"and are those of {FIRST}, {LAST}"),
    ],
)
def test_a_malformed_list_is_refused_by_file_and_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^list\.csv.*{message}"):
        parse_scene_list(text.encode(), "list.csv")


def test_bytes_that_are_no_text_and_endless_lists_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"list\.csv is not a CSV in UTF-8; save it as one"):
        parse_scene_list(b"scene_id\n\xff\xfe", "list.csv")
    with pytest.raises(InputError, match="field larger than field limit"):
        parse_scene_list(b"scene_id\n" + b"a" * 200_000, "list.csv")
    with pytest.raises(InputError, match="is larger than 16,777,216 bytes; leave the scenes that are used"):
        parse_scene_list(b"," * (16 << 20) + b"\n", "list.csv")
    monkeypatch.setattr(scene_list, "_MAX_LINES", 3)
    with pytest.raises(InputError, match="has more than 3 lines"):
        parse_scene_list(SOUND.encode(), "list.csv")


def test_more_than_three_scenes_or_two_of_one_day_are_refused_by_tile_and_line() -> None:
    fourth = SOUND + f"{FIRST.replace('2022072', '2022100')},T14SMG,1,99,\n"
    with pytest.raises(
        InputError, match=r"list.csv lists 4 scenes of 14SMG in 2022 \(lines 2, 3, 4, 6\); leave the three"
    ):
        selection(fourth)
    twin = SOUND.replace(MIDDLE, FIRST.replace("S30", "L30"))
    with pytest.raises(
        InputError, match=r"list.csv lists two scenes of 14SMG of one day \(lines .*\); leave one"
    ):
        selection(twin)
    # the other tiles of these lists are as they were
    assert (
        list(selection(fourth, "14SNG")["scene_id"]) == list(selection(twin, "14SNG")["scene_id"]) == [OTHER]
    )
