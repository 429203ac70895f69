"""Croissant metadata, by the eyes of mlcroissant: no error and no warning, and its records are the tables."""

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pandas as pd
import pytest
import rdflib

from crop_assets.classes import CLASSES
from crop_assets.description.croissant import CONFORMS_TO, croissant_text, files_text
from crop_assets.description.facts import CardTables, described_files
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import CHIP_INDEX
from crop_assets_tests.description.frames import made_tables, sha256, with_changes
from crop_assets_tests.description.test_card import EVIL
from resources.errors import IntegrityError

TABLES = made_tables(48, test_share=0.2, train_share=0.6)
RECIPE = DatasetRecipe(dataset="made", seed=7)
GEO, RAI, PROV = (
    rdflib.Namespace(f"http://{name}")
    for name in ("mlcommons.org/croissant/geo/", "mlcommons.org/croissant/RAI/", "www.w3.org/ns/prov#")
)
# rdflib 7 and mlcroissant 1.1.1 use what rdflib and pandas will remove
pytestmark = [
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dataset.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index"),
]


def texts(tables: CardTables, recipe: DatasetRecipe = RECIPE) -> tuple[str, str]:
    """The texts of croissant.json and files.csv."""
    files = described_files(tables.dataset_files, tables.stac_catalogue)
    listed = files_text(files)
    return croissant_text(tables, files, listed, recipe, 2022), listed


def written(tables: CardTables, folder: Path, recipe: DatasetRecipe = RECIPE) -> Path:
    """croissant.json in a folder with the files that records are read from."""
    tables.chip_index.to_parquet(folder / "chips.parquet")
    data = (folder / "chips.parquet").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    files = tables.dataset_files
    files = files.assign(
        sha256=[
            digest if f == "chips.parquet" else s for f, s in zip(files["file"], files["sha256"], strict=True)
        ]
    )
    text, listed = texts(with_changes(tables, dataset_files=files), recipe)
    (folder / "files.csv").write_text(listed)
    path = folder / "croissant.json"
    path.write_text(text)
    return path


def opened(path: Path, caplog: pytest.LogCaptureFixture) -> mlcroissant.Dataset:
    """The dataset as mlcroissant reads it, which must have nothing to say about it."""
    with caplog.at_level(logging.INFO):
        dataset = mlcroissant.Dataset(str(path))
    assert dataset.metadata.ctx.issues.report() == ""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    return dataset


def records(dataset: mlcroissant.Dataset, name: str) -> list[dict[str, Any]]:
    """The records of a record set, with texts in place of bytes and without the name of the set in those of fields."""

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(one) for one in value]
        return value.decode() if isinstance(value, bytes) else value

    return [
        {key.removeprefix(f"{name}/"): text(value) for key, value in record.items()}
        for record in dataset.records(name)
    ]


def require_chips(found: list[dict[str, Any]], index: pd.DataFrame) -> None:
    columns = [column.name for column in CHIP_INDEX.columns]
    assert len(found) == len(index)
    by_chip = {record["chip_id"]: record for record in found}
    for row in index[columns].to_dict("records"):
        record = by_chip[row["chip_id"]]
        assert list(record) == columns
        for name, value in row.items():
            if name.endswith("_date"):
                assert record[name].date() == value
            elif name.endswith("_cids"):
                assert record[name] == list(value)
            elif pd.isna(value):
                assert record[name] is None, name
            else:
                assert record[name] == value, name


def test_mlcroissant_serves_the_tables_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = opened(written(TABLES, tmp_path), caplog)
    require_chips(records(dataset, "chips"), TABLES.chip_index)
    assert [one["name"] for one in records(dataset, "splits")] == ["train", "validation", "test"]
    assert [(one["value"], one["name"]) for one in records(dataset, "classes")] == list(enumerate(CLASSES))
    files = pd.DataFrame(records(dataset, "files")).sort_values("file", ignore_index=True)
    expected = TABLES.dataset_files[["file", "media_type", "bytes", "sha256"]].sort_values(
        "file", ignore_index=True
    )
    expected.loc[expected["file"] == "chips.parquet", "sha256"] = files.loc[
        files["file"] == "chips.parquet", "sha256"
    ]
    pd.testing.assert_frame_equal(files, expected, check_dtype=False)


def test_a_table_that_is_not_the_one_described_is_refused(tmp_path: Path) -> None:
    path = written(TABLES, tmp_path)
    with (tmp_path / "files.csv").open("a") as file:
        file.write("another.tif,image/tiff,1,0\n")
    with pytest.raises(mlcroissant.GenerationError) as refused:
        list(mlcroissant.Dataset(str(path)).records("files"))
    assert "is not identical" in str(refused.value.__cause__)


def test_the_check_would_see_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(TABLES, tmp_path)
    document = json.loads(path.read_text())
    del document["datePublished"]
    path.write_text(json.dumps(document))
    with pytest.raises(AssertionError):
        opened(path, caplog)


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_command_of_mlcroissant_validates_it(tmp_path: Path, spoilt: bool) -> None:
    path = written(TABLES, tmp_path)
    if spoilt:
        document = json.loads(path.read_text())
        document["recordSet"][2]["field"][0]["source"]["fileObject"]["@id"] = "nothing.parquet"
        path.write_text(json.dumps(document))
    # the command `mlcroissant validate --jsonld`
    program = "import sys; from mlcroissant.scripts.cli import main; sys.exit(main())"
    command = [sys.executable, "-W", "ignore", "-c", program, "validate", "--jsonld", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == spoilt, said
    assert ("WARNING" in said, "Done." in said) == (False, not spoilt), said


def graph_of(text: str) -> tuple[rdflib.Graph, rdflib.term.Node]:
    """The triples of the document, and its dataset."""
    graph = rdflib.Graph().parse(data=text, format="json-ld")
    (dataset,) = graph.subjects(rdflib.RDF.type, rdflib.URIRef("https://schema.org/Dataset"))
    return graph, dataset


def test_places_times_and_bands_are_in_the_terms_of_geocroissant() -> None:
    graph, dataset = graph_of(texts(TABLES)[0])
    conforms = {
        str(one) for one in graph.objects(dataset, rdflib.URIRef("http://purl.org/dc/terms/conformsTo"))
    }
    assert conforms == set(CONFORMS_TO)
    assert str(graph.value(dataset, GEO.coordinateReferenceSystem)) == "EPSG:5070"
    schema = rdflib.Namespace("https://schema.org/")
    resolution = graph.value(dataset, GEO.spatialResolution)
    assert (int(graph.value(resolution, schema.value)), str(graph.value(resolution, schema.unitText))) == (
        30,
        "m",
    )
    configuration = graph.value(dataset, GEO.bandConfiguration)
    assert int(graph.value(configuration, GEO.totalBands)) == 18
    names = {f"{position}_{band}" for position in POSITIONS for band in REFLECTANCE_BANDS}
    assert {str(name) for name in graph.objects(configuration, GEO.bandNameList)} == names
    bands = list(graph.objects(dataset, GEO.spectralBandMetadata))
    assert {str(graph.value(band, schema.name)) for band in bands} == names
    widths = {
        str(graph.value(band, schema.name)): float(
            graph.value(graph.value(band, GEO.bandwidth), schema.value)
        )
        for band in bands
    }
    assert widths["last_B8A"] == 30
    shape = graph.value(graph.value(dataset, schema.spatialCoverage), schema.geo)
    south, west, north, east = map(float, str(graph.value(shape, schema.box)).split())
    bounds = TABLES.chip_index.geometry.to_crs(4326).total_bounds
    assert [west, south, east, north] == pytest.approx(bounds, abs=2e-4)
    first, last = str(graph.value(dataset, schema.temporalCoverage)).split("/")
    assert (first, last) == (
        str(TABLES.chip_index["first_date"].min()),
        str(TABLES.chip_index["last_date"].max()),
    )
    assert {str(one) for one in graph.objects(dataset, GEO.spatialIndex)} == {
        f"mgrs:{tile}" for tile in TABLES.chip_index["tile"]
    }
    touching = int(TABLES.splits["touches_train"].sum())
    biases = " ".join(map(str, graph.objects(dataset, RAI.dataBiases)))
    assert touching > 0
    assert f"{touching} of {(TABLES.splits['split'] != 'train').sum()} validation and test chips" in biases


def test_the_order_of_bands_is_that_of_a_file() -> None:
    document = json.loads(texts(TABLES)[0])
    expected = [f"{position}_{band}" for position in POSITIONS for band in REFLECTANCE_BANDS]
    assert document["geocr:bandConfiguration"]["geocr:bandNameList"] == expected
    assert [band["name"] for band in document["geocr:spectralBandMetadata"]] == expected


def test_each_scene_and_cid_and_the_release_are_what_it_was_derived_from() -> None:
    unknown = TABLES.downloaded_bands.copy()
    unknown.loc[0, "cid"] = ""
    graph, dataset = graph_of(texts(with_changes(TABLES, downloaded_bands=unknown))[0])
    derived = {str(one) for one in graph.objects(dataset, PROV.wasDerivedFrom)}
    scenes = {scene for position in POSITIONS for scene in TABLES.chip_index[f"{position}_scene"]}
    assert derived == {
        f"urn:sha256:{TABLES.cdl['sha256'][0]}",
        "https://doi.org/10.5067/HLS/HLSS30.002",
        *(f"urn:hls:{scene}" for scene in scenes),
    }
    bands = unknown[unknown["scene_id"].isin(scenes) & (unknown["band"] != "Fmask") & (unknown["cid"] != "")]
    assert len(bands) == 6 * len(scenes) - 1
    members = {(str(a).removeprefix("urn:hls:"), str(b)) for a, b in graph.subject_objects(PROV.hadMember)}
    assert members == {
        (scene, f"ipfs://{cid}") for scene, cid in zip(bands["scene_id"], bands["cid"], strict=True)
    }
    activity = graph.value(dataset, PROV.wasGeneratedBy)
    assert str(activity) == f"urn:sha256:{TABLES.fingerprint['fingerprint'][0]}"
    schema = rdflib.Namespace("https://schema.org/")
    values = {
        str(graph.value(one, schema.name)): str(graph.value(one, schema.value))
        for one in graph.objects(activity, schema.additionalProperty)
    }
    assert json.loads(values["recipe.seed"]) == 7
    assert values["inputs_sha256"] == TABLES.fingerprint["inputs_sha256"][0]


def test_every_file_is_a_file_object_or_in_one_file_set() -> None:
    more = pd.DataFrame(
        {
            "file": ["stac/collection.json", "stac/chip_1/chip_1.json"],
            "kind": ["collection", "item"],
            "bytes": 3,
        }
    ).assign(sha256=sha256("stac"))
    tables = with_changes(TABLES, stac_catalogue=more)
    text, listed = texts(tables)
    distribution = json.loads(text)["distribution"]
    objects = {one["contentUrl"]: one["sha256"] for one in distribution if one["@type"] == "cr:FileObject"}
    patterns = [one["includes"] for one in distribution if one["@type"] == "cr:FileSet"]
    names = [*TABLES.dataset_files["file"], *more["file"]]
    assert sorted(line.split(",")[0] for line in listed.splitlines()[1:]) == sorted(names)
    known = dict(zip(TABLES.dataset_files["file"], TABLES.dataset_files["sha256"], strict=True))
    assert objects == {name: known[name] for name in names if "/" not in name} | {"files.csv": sha256(listed)}
    for name in names:
        found = [pattern for pattern in patterns if Path("/" + name).match("/" + pattern.replace("**", "*"))]
        found += [
            pattern
            for pattern in patterns
            if "**" in pattern and Path(name).match(pattern.replace("**/", ""))
        ]
        assert len(set(found)) == ("/" in name), (name, found)


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_hostile_texts_stay_values(evil: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = RECIPE.model_copy(update={"aoi": f"/{evil.replace('/', '')[:200]}"})
    tables = with_changes(TABLES, cdl=TABLES.cdl.assign(file=evil, release=evil))
    path = written(tables, tmp_path, recipe)
    opened(path, caplog)
    graph, _ = graph_of(path.read_text())
    raster = rdflib.URIRef(f"urn:sha256:{TABLES.cdl['sha256'][0]}")
    assert str(graph.value(raster, PROV.hadPrimarySource)) == evil
    harmless, _ = graph_of(texts(TABLES)[0])
    assert len(graph) == len(harmless)
    assert {str(kind) for kind in graph.objects(None, rdflib.RDF.type)} == {
        str(kind) for kind in harmless.objects(None, rdflib.RDF.type)
    }
    assert set(graph.predicates()) == set(harmless.predicates())
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("name", ["../secret", "a/../../b", "/etc/passwd", "chips.parquet"])
def test_a_name_that_leads_out_of_the_dataset_or_is_there_twice_is_refused(name: str) -> None:
    more = pd.DataFrame({"file": [name], "kind": "item", "bytes": 1, "sha256": sha256("")})
    with pytest.raises(IntegrityError, match="dataset_files names"):
        described_files(TABLES.dataset_files, more)


def test_one_chip_of_two_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = made_tables(1, classes=2)
    dataset = opened(written(tables, tmp_path), caplog)
    require_chips(records(dataset, "chips"), tables.chip_index)
    assert [one["name"] for one in records(dataset, "splits")] == ["train"]
    (biases,) = [text for text in dataset.metadata.data_biases if text.startswith("No chip has")]
    assert "Corn" in biases and "Forest" not in biases


def test_five_thousand_chips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = made_tables(5000)
    path = written(tables, tmp_path)
    assert path.stat().st_size < 2_000_000
    dataset = opened(path, caplog)
    assert len(records(dataset, "files")) == len(tables.dataset_files) > 10_000
    found = pd.DataFrame(records(dataset, "chips"))
    assert list(found["chip_id"]) == list(tables.chip_index["chip_id"])
    assert np.allclose(found["class_3_share"], tables.chip_index["class_3_share"])


def test_the_same_tables_have_the_same_texts() -> None:
    assert texts(made_tables(48, test_share=0.2, train_share=0.6)) == texts(TABLES)
    shuffled = with_changes(
        TABLES,
        downloaded_bands=TABLES.downloaded_bands.sample(frac=1, random_state=1),
        dataset_files=TABLES.dataset_files.sample(frac=1, random_state=1),
    )
    assert texts(shuffled) == texts(TABLES)
