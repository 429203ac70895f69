"""Metadata of a dataset in JSON-LD: Croissant 1.1 with GeoCroissant 1.0, Croissant RAI 1.0 and PROV-O.

Terms are those of the specifications in `docs/` of mlcommons/croissant: croissant-spec-1.1.md, croissant-geo-spec.md
and croissant-rai-spec.md. Where a specification and its vocabulary (croissant_geo.ttl) differ, as `bandNameList` and
`bandNamesList`, the specification is followed.

Each file has its SHA-256 in `files.csv`, which is a record set. As `FileObject`s, the 20,000 files of 5,000 chips would
take mlcroissant 14 s and 460 MB to load. Files at the top of the folder are `FileObject`s as well, and
folders are `FileSet`s.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa

from crop_assets.chip_grid import CRS, RESOLUTION
from crop_assets.classes import CLASS_COLOURS, CLASSES
from crop_assets.dataset.splits import SPLIT_NAMES
from crop_assets.description import facts
from crop_assets.description.facts import FILES, Tables
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import CHIP_INDEX
from resources.tables import Column

CONFORMS_TO = (
    "http://mlcommons.org/croissant/1.1",
    "http://mlcommons.org/croissant/geo/1.0",
    "http://mlcommons.org/croissant/RAI/1.0",
)
_CHIPS = "chips.parquet"
_SPLIT_URLS = dict(zip(SPLIT_NAMES, ("cr:TrainingSplit", "cr:ValidationSplit", "cr:TestSplit"), strict=True))
_READ_AS = {"application/vnd.apache.parquet": "application/x-parquet"}
"""The media types that mlcroissant reads Parquet by, besides the registered one."""


def files_text(files: pd.DataFrame) -> str:
    """The text of files.csv: file, media_type, bytes and sha256 of each file of the dataset, by `described_files`."""
    columns = ["file", "media_type", "bytes", "sha256"]
    return str(files[columns].to_csv(index=False, lineterminator="\n"))


def croissant_text(tables: Tables, files: pd.DataFrame, listed: str, recipe: DatasetRecipe, year: int) -> str:
    """The text of croissant.json. The same tables and recipe give the same text.

    `files` has all files of the dataset (`described_files`), and `listed` is the text of files.csv.
    """
    return json.dumps(_document(tables, files, listed, recipe, year), indent=1, ensure_ascii=True) + "\n"


def _document(
    tables: Tables, files: pd.DataFrame, listed: str, recipe: DatasetRecipe, year: int
) -> dict[str, Any]:
    chips, name = tables.chip_index, f"{recipe.dataset} {year}"
    fingerprint = str(tables.fingerprint.iloc[0]["fingerprint"])
    first, last = (str(day) for day in facts.dates(chips))
    west, south, east, north = facts.bounding_box(chips)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": name,
        "description": f"{len(chips):,} image chips with crop labels of {year} for semantic segmentation: six bands of "
        "Harmonized Landsat Sentinel-2 surface reflectance on three dates of a season, and 13 classes from the USDA "
        "Cropland Data Layer. Who publishes it where and when is not known here: url is the dataset card, creator the "
        "program, and datePublished the first day after the year of the labels.",
        "url": "README.md",
        "version": f"1.0.0+{fingerprint[:16]}",
        "datePublished": f"{year + 1}-01-01",
        "license": ["https://creativecommons.org/publicdomain/mark/1.0/", facts.LP_DAAC_POLICY],
        "creator": {"@type": "sc:Organization", "name": "crop-assets"},
        "citeAs": f"@misc{{{recipe.dataset}-{year}, title = {{{{{name}}}}}, year = {{{year}}}, "
        f"note = {{fingerprint {fingerprint}}}}}",
        "keywords": ["remote sensing", "crop type", "land cover", "semantic segmentation", "HLS", "CDL"],
        "isLiveDataset": False,
        "spatialCoverage": {
            "@type": "sc:Place",
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        "temporalCoverage": f"{first}/{last}",
        **_geo(tables, recipe),
        **_responsible(tables, recipe, year, first, last),
        **_provenance(tables, recipe, fingerprint),
        "distribution": _distribution(files, listed),
        "recordSet": [
            _splits(chips),
            _classes(),
            _chips(),
            _files(),
        ],
    }


def _geo(tables: Tables, recipe: DatasetRecipe) -> dict[str, Any]:
    bands = [
        {
            "@type": "geocr:SpectralBand",
            "name": f"{position}_{band}",
            "description": f"{facts.COLOURS[band]}, {position} date",
            "geocr:centerWavelength": _nanometres((low + high) / 2),
            "geocr:bandwidth": _nanometres(high - low),
        }
        for position in POSITIONS
        for band, (low, high) in ((band, facts.WAVELENGTHS[band]) for band in REFLECTANCE_BANDS)
    ]
    tiles = sorted(tables.chip_index["tile"].unique())
    return {
        "geocr:coordinateReferenceSystem": CRS,
        "geocr:spatialResolution": {"@type": "sc:QuantitativeValue", "value": RESOLUTION, "unitText": "m"},
        "geocr:temporalResolution": "three dates of one season for each chip, without a fixed cadence",
        "geocr:bandConfiguration": _bands([str(band["name"]) for band in bands]),
        "geocr:spectralBandMetadata": bands,
        "geocr:spatialIndex": [f"mgrs:{tile}" for tile in tiles],
        "geocr:samplingStrategy": f"{facts.sampling(recipe)} {_quality_rule(recipe)}",
        "geocr:spatialBias": f"{len(tables.chip_index):,} chips of 6.72 km in {len(tiles):,} HLS tiles of the "
        "contiguous United States. Places without three clear scenes are missing; shares of classes and places are "
        "not those of the country.",
    }


def _bands(names: Sequence[str]) -> dict[str, Any]:
    return {
        "@type": "geocr:BandConfiguration",
        "geocr:totalBands": len(names),
        "geocr:bandNameList": list(names),
    }


def _nanometres(value: float) -> dict[str, Any]:
    return {"@type": "sc:QuantitativeValue", "value": value, "unitText": "nm"}


def _quality_rule(recipe: DatasetRecipe) -> str:
    return (
        f"Chips are kept if on each of three dates at most {recipe.max_bad_percent:g} percent of their pixels are bad "
        f"by Fmask (rule '{recipe.qa_rule}'), and at most {recipe.max_na_pixels:,} pixels lack a value."
    )


def _responsible(tables: Tables, recipe: DatasetRecipe, year: int, first: str, last: str) -> dict[str, Any]:
    pixels = facts.class_pixels(tables.class_distribution)
    absent = [CLASSES[value] for value in range(1, len(CLASSES)) if not pixels[value]]
    others = tables.splits[tables.splits["split"] != "train"]
    biases = [
        "Classes are chosen by the sampling rule, so their shares are not those of the country.",
        "Places with clouds on most days of the season are under-represented.",
    ]
    if absent:
        biases.append(f"No chip has {', '.join(absent)}.")
    if len(others):
        biases.append(
            f"{others['touches_train'].sum():,} of {len(others):,} validation and test chips touch a training chip; "
            "results on them are better than on new places."
        )
    return {
        "rai:dataCollection": "Chips are cut from HLS scenes, reprojected to the grid of the CDL, at places that are "
        f"chosen by the CDL's classes. {_quality_rule(recipe)}",
        "rai:dataCollectionType": ["Secondary Data analysis"],
        "rai:dataCollectionRawData": f"{len(facts.scenes(tables.chip_index)):,} HLS scenes, and the CDL of {year}.",
        "rai:dataCollectionTimeframe": [first, last],
        "rai:dataCollectionMissingData": f"{int((tables.chip_index['na_count'] > 0).sum()):,} chips have pixels "
        "without a value, which are -9999.",
        "rai:dataPreprocessingProtocol": [
            "HLS bands are reprojected from UTM to EPSG:5070 at 30 m, bilinearly.",
            "CDL codes are grouped to 13 classes; class 0 is no data.",
            _quality_rule(recipe),
        ],
        "rai:dataAnnotationProtocol": "Masks are the Cropland Data Layer, a map that NASS makes with a model from "
        "satellite images and field records. Its accuracy by class and state is published with its metadata: "
        f"{facts.CDL_METADATA_PAGE}",
        "rai:machineAnnotationTools": ["USDA NASS Cropland Data Layer"],
        "rai:annotationsPerItem": "0",
        "rai:dataBiases": biases,
        "rai:dataLimitations": [
            "Labels are a model's map and not ground truth: scores are agreement with the CDL.",
            "Pixels of 30 m mix small fields and edges.",
            "One year and three dates: other years and times of the season are not represented.",
            "Fmask misses some thin cloud and cloud shadow.",
        ],
        "rai:dataUseCases": ["Training, validation and testing of crop and land-cover segmentation."],
        "rai:personalSensitiveInformation": ["None: pixels of 30 m, and labels without farms or owners."],
    }


def _provenance(tables: Tables, recipe: DatasetRecipe, fingerprint: str) -> dict[str, Any]:
    """What the dataset was derived from and by which recipe, in PROV-O: each scene is a collection of its band files,
    by their CIDs where these are known.
    """
    cdl, chips = tables.cdl.iloc[0], tables.chip_index
    raster = {
        "@id": f"urn:sha256:{cdl['sha256']}",
        "@type": "prov:Entity",
        "prov:label": f"Cropland Data Layer: {cdl['file']}",
        "sc:sha256": str(cdl["sha256"]),
    }
    if cdl["release"]:
        raster["prov:hadPrimarySource"] = str(cdl["release"])
    products = [
        {
            "@id": f"https://doi.org/{facts.HLS_PRODUCTS[sensor][1]}",
            "@type": "prov:Entity",
            "prov:label": facts.HLS_PRODUCTS[sensor][0],
        }
        for sensor in facts.sensors(chips)
    ]
    bands = facts.bands_of(tables)
    cids = {scene: sorted({*of_scene["cid"]} - {""}) for scene, of_scene in bands.groupby("scene_id")}
    scenes = [
        {
            "@id": f"urn:hls:{scene}",
            "@type": "prov:Collection",
            "prov:label": scene,
            "prov:wasDerivedFrom": {"@id": f"https://doi.org/{facts.HLS_PRODUCTS[scene.split('.')[1]][1]}"},
            "prov:hadMember": [{"@id": f"ipfs://{cid}"} for cid in cids.get(scene, ())],
        }
        for scene in facts.scenes(chips)
    ]
    found = tables.fingerprint.iloc[0]
    facts_of_run = {
        "fingerprint": fingerprint,
        **{name: str(found[name]) for name in ("recipe_sha256", "inputs_sha256", "outputs_sha256")},
        **{f"recipe.{name}": json.dumps(value, sort_keys=True) for name, value in recipe.values().items()},
    }
    return {
        "prov:wasAttributedTo": {
            "@id": "urn:crop-assets",
            "@type": "prov:SoftwareAgent",
            "prov:label": "crop-assets",
        },
        "prov:wasGeneratedBy": {
            "@id": f"urn:sha256:{fingerprint}",
            "@type": "prov:Activity",
            "prov:label": "crop-assets, with the recipe in additionalProperty",
            "additionalProperty": [
                {"@type": "sc:PropertyValue", "name": name, "value": value}
                for name, value in facts_of_run.items()
            ],
        },
        "prov:wasDerivedFrom": [raster, *products, *scenes],
    }


def _distribution(files: pd.DataFrame, listed: str) -> list[dict[str, Any]]:
    data = listed.encode()
    objects = [_file_object(FILES, "text/csv", len(data), hashlib.sha256(data).hexdigest())]
    folders: dict[tuple[str, str, str], list[str]] = {}
    for name, kind, size, digest in files[["file", "media_type", "bytes", "sha256"]].itertuples(index=False):
        folder = str(PurePosixPath(name).parent)
        if folder != ".":
            folders.setdefault((folder, _ending(name), kind), []).append(name)
        else:
            objects.append(_file_object(name, kind, size, digest))
    return objects + [_file_set(*key, names) for key, names in sorted(folders.items())]


def _file_object(name: str, kind: str, size: int, digest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": [kind, _READ_AS[kind]] if kind in _READ_AS else kind,
        "contentSize": f"{size} B",
        "sha256": digest,
    }


def _ending(name: str) -> str:
    """What files of a kind have in common at the end of their names."""
    path = PurePosixPath(name)
    ends = (end for end in ("_merged.tif", ".mask.tif") if path.name.endswith(end))
    return next(ends, path.suffix or path.name)


def _file_set(folder: str, ending: str, kind: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{folder.replace('/', '-')}-files{ending.replace('_', '.')}",
        "name": f"{folder}: {len(names):,} files",
        "encodingFormat": kind,
        "includes": f"{folder}/*{ending}",
    }


def _splits(chips: pd.DataFrame) -> dict[str, Any]:
    found = [split for split in SPLIT_NAMES if (chips["split"] == split).any()]
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits of the dataset.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [_field("splits", "name", "sc:Text"), _field("splits", "url", "sc:URL")],
        "data": [{"splits/name": split, "splits/url": _SPLIT_URLS[split]} for split in found],
    }


def _classes() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "The values of a mask.",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/value"},
        "field": [
            _field("classes", "value", "sc:Integer"),
            _field("classes", "name", "sc:Text"),
            _field("classes", "color", "sc:Text"),
        ],
        "data": [
            {"classes/value": value, "classes/name": name, "classes/color": CLASS_COLOURS[value]}
            for value, name in enumerate(CLASSES)
        ],
    }


def _chips() -> dict[str, Any]:
    fields = [_column(column) for column in CHIP_INDEX.columns]
    return {
        "@type": "cr:RecordSet",
        "@id": "chips",
        "name": "chips",
        "description": "A record a chip: all columns of chips.parquet but its geometry.",
        "key": {"@id": "chips/chip_id"},
        "field": fields,
    }


def _column(column: Column) -> dict[str, Any]:
    field = _field("chips", column.name, _data_type(column.type), column.description)
    field["source"] = {"fileObject": {"@id": _CHIPS}, "extract": {"column": column.name}}
    if pa.types.is_list(column.type):
        field["isArray"] = True
    if column.name == "split":
        field["references"] = {"field": {"@id": "splits/name"}}
    if column.name == "mask":
        field["dataType"] = ["sc:Text", "cr:Label"]
        field["geocr:bandConfiguration"] = _bands(["class"])
    return field


def _files() -> dict[str, Any]:
    described = {
        "file": ("sc:Text", "file, relative to this one"),
        "media_type": ("sc:Text", "media type"),
        "bytes": ("cr:Int64", "size"),
        "sha256": ("sc:Text", "checksum of the content"),
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "files",
        "name": "files",
        "description": "All files of the dataset but this one and files.csv, with their checksums.",
        "key": {"@id": "files/file"},
        "field": [
            {
                **_field("files", name, kind, text),
                "source": {"fileObject": {"@id": FILES}, "extract": {"column": name}},
            }
            for name, (kind, text) in described.items()
        ],
    }


def _field(record_set: str, name: str, data_type: str, description: str = "") -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "dataType": data_type}
    return field | {"description": description} if description else field


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        kind = kind.value_type
    return _TYPES[str(kind)]


_TYPES = {
    "string": "sc:Text",
    "bool": "sc:Boolean",
    "double": "cr:Float64",
    "int32": "cr:Int32",
    "int64": "cr:Int64",
    "date32[day]": "sc:Date",
}


def _terms(prefix: str, names: Iterable[str]) -> dict[str, str]:
    return {name: f"{prefix}:{name}" for name in names}


# https, as mlcroissant requires; the specification's appendix has http and its examples both
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **_terms(
        "cr",
        (
            # unused, and of Croissant 1.0: mlcroissant 1.1.1 warns of a context without them
            *("path", "repeated", "replace", "samplingRate"),
            *(
                "annotation",
                "arrayShape",
                "citeAs",
                "column",
                "containedIn",
                "equivalentProperty",
                "excludes",
            ),
            *("extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray"),
            *(
                "isLiveDataset",
                "jsonPath",
                "key",
                "md5",
                "parentField",
                "readLines",
                "recordSet",
                "references",
            ),
            *("regex", "sdVersion", "separator", "source", "subField", "transform", "unArchive"),
        ),
    ),
}
