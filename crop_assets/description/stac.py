"""The dataset as a static STAC 1.1 catalogue: a collection, an item a chip, and all items as stac-geoparquet.

Only links to sources are absolute, so that the catalogue can be copied with the dataset. No time and no version of
a library is in it, so that the same dataset has the same catalogue.
"""

import contextlib
import datetime as dt
import functools
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from crop_assets.chip_grid import CHIP_SIZE, CRS, RESOLUTION, chip_geobox, chip_outline
from crop_assets.classes import CLASS_COLOURS, CLASS_COLUMNS, CLASSES
from crop_assets.dataset.splits import LEAKAGE, OF_SPLIT, SPLIT_NAMES, TEST, TRAIN, VALIDATION
from crop_assets.description import facts
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, POSITIONS, REFLECTANCE_BANDS, collection_of, file_band, parse_scene_id
from resources.addresses import AddressError, read

FOLDER = "stac"
COLLECTION = f"{FOLDER}/collection.json"
ITEMS_PARQUET = f"{FOLDER}/items.parquet"
JSON_TYPE = "application/json"
GEOJSON_TYPE = "application/geo+json"
PARQUET_TYPE = "application/vnd.apache.parquet"
GEOTIFF_TYPE = "image/tiff; application=geotiff"

_STAC_VERSION = "1.1.0"
_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
_OF_ITEMS = [
    _EXTENSION.format(name)
    for name in (
        "classification/v2.0.0",
        "eo/v2.0.0",
        "file/v2.1.0",
        "ml-aoi/v0.2.0",
        "projection/v2.0.0",
        "raster/v2.0.0",
    )
]
_OF_COLLECTION = [*_OF_ITEMS, _EXTENSION.format("version/v1.2.0")]
_CATALOGUE = "https://cmr.earthdata.nasa.gov/stac/LPCLOUD/collections"
"""The collections of NASA's archive of HLS (LP DAAC) in CMR-STAC."""
_SHA256_MULTIHASH = "1220"
"""Prefix of a SHA-256 as multihash, in hex: the code of the function and the length of the hash, 32 bytes."""
_DECIMALS = 7
"""Of degrees: a centimetre."""
_SPLITS = {TRAIN: "train", VALIDATION: "validate", TEST: "test"}
"""The words of the ML AOI extension."""
_COMMON_NAMES = dict(
    zip(REFLECTANCE_BANDS, ("blue", "green", "red", "nir08", "swir16", "swir22"), strict=True)
)
"""Of the EO extension."""
_NAMES = [re.sub("[^a-z]+", "_", name.lower()) for name in CLASSES]
"""Names of classes in the alphabet of the classification extension."""
_OF_SENSOR: dict[str, dict[str, Any]] = {
    "S30": {
        "instrument": "msi",
        "provider": {
            "name": "European Union, Copernicus, and European Space Agency",
            "description": "Sentinel-2, from which HLS S30 is made",
            "roles": ["producer", "licensor"],
            "url": "https://sentinels.copernicus.eu",
        },
        "license": (
            "Sentinel-2",
            "https://sentinels.copernicus.eu/documents/247904/690755/Sentinel_Data_Legal_Notice",
            "free, with the notice that it is modified Copernicus Sentinel data",
        ),
    },
    "L30": {
        "instrument": "oli",
        "provider": {
            "name": "United States Geological Survey",
            "description": "Landsat 8 and 9, from which HLS L30 is made",
            "roles": ["producer", "licensor"],
            "url": "https://www.usgs.gov/landsat-missions",
        },
        "license": (
            "Landsat",
            "https://www.usgs.gov/information-policies-and-instructions/copyrights-and-credits",
            "public domain",
        ),
    },
}
_PROVIDERS = [
    {
        "name": "USDA National Agricultural Statistics Service",
        "description": "Cropland Data Layer, from which the masks are made",
        "roles": ["producer", "licensor"],
        "url": facts.CDL_PAGE,
    },
    {
        "name": "NASA Land Processes Distributed Active Archive Center",
        "description": "Harmonized Landsat Sentinel-2 (HLS), from which the images are made",
        "roles": ["producer", "licensor"],
        "url": "https://www.earthdata.nasa.gov/centers/lp-daac",
    },
]
_PROCESSOR = {
    "name": "crop-assets",
    "description": "made the chips, splits and statistics from these sources",
    "roles": ["processor"],
}
_LICENSES = [
    (
        "Cropland Data Layer",
        "https://www.nass.usda.gov/Research_and_Science/Cropland/sarsfaqs2.php",
        "public domain",
    ),
    (
        "HLS",
        facts.LP_DAAC_POLICY,
        "no restrictions, with the request to cite it",
    ),
]
"""Name, page and gist of the terms of the sources."""
_FOLDERS = tuple(
    f"{name}/"
    for name in ("chips_filtered", *(files.folder for files in OF_SPLIT.values()), "exports", "viewer")
)
"""Folders whose files are not assets of the collection: items have the chips, exports are copies of them, and the
viewer has one page.
"""
_VIEWER = "viewer/index.html"


def item_name(chip_id: str) -> str:
    return f"{FOLDER}/items/{chip_id}.json"


def chip_item(chip: Mapping[str, Any], sizes: Mapping[str, int], collection_id: str) -> dict[str, Any]:
    """The STAC item of a chip.

    `chip` is a row of chip_index, `sizes` the bytes of the dataset's files by name. The geometry has the four corners
    of the chip's box in degrees, counterclockwise; the box's edges, which are straight in EPSG:5070, are up to 2 m from
    the lines between them. Times are complete days, from the first date to the last. Raises InputError if `sizes` lacks
    a file of the chip, and IntegrityError for an invalid scene id.
    """
    chip_id = chip["chip_id"]
    outline = shapely.geometry.polygon.orient(chip_outline(chip_id))
    corners = [[round(value, _DECIMALS) for value in point] for point in outline.exterior.coords]
    lon, lat = zip(*corners, strict=True)
    scenes = [chip[f"{position}_scene"] for position in POSITIONS]
    dates = [chip[f"{position}_date"].isoformat() for position in POSITIONS]
    box = chip_geobox(chip_id)
    properties = {
        "title": f"{chip_id} in tile {chip['tile']}",
        "datetime": None,
        "start_datetime": f"{dates[0]}T00:00:00Z",
        "end_datetime": f"{dates[-1]}T23:59:59Z",
        "gsd": RESOLUTION,
        "instruments": sorted({_OF_SENSOR[parse_scene_id(scene).sensor]["instrument"] for scene in scenes}),
        "proj:code": CRS,
        "proj:shape": [CHIP_SIZE, CHIP_SIZE],
        "proj:transform": list(box.affine)[:6],
        "proj:bbox": list(box.boundingbox.bbox),
        "ml-aoi:split": _SPLITS[chip["split"]],
        "crops:tile": chip["tile"],
        "crops:block": chip["block"],
        **{f"crops:{name}": bool(chip[name]) for name in LEAKAGE},
        "crops:dates": dates,
        "crops:scenes": scenes,
        "crops:verified": [bool(chip[f"{position}_verified"]) for position in POSITIONS],
        "crops:bad_percent": [float(chip[f"bad_percent_{position}"]) for position in POSITIONS],
        "crops:na_pixels": int(chip["na_count"]),
        "crops:class_share": {
            name: float(chip[f"{column}_share"]) for name, column in zip(_NAMES, CLASS_COLUMNS, strict=True)
        },
        **{f"crops:{name}": chip[name] for name in ("cdl_file", "cdl_release", "cdl_sha256") if chip[name]},
        **{
            f"crops:{name}": float(chip[name])
            for name in ("purity_percent", "confidence_percent")
            if pd.notna(chip.get(name))
        },
    }
    return {
        "type": "Feature",
        "stac_version": _STAC_VERSION,
        "stac_extensions": _OF_ITEMS,
        "id": chip_id,
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "bbox": [min(lon), min(lat), max(lon), max(lat)],
        "properties": properties,
        "links": [
            *(
                {"rel": rel, "href": "../collection.json", "type": JSON_TYPE}
                for rel in ("root", "parent", "collection")
            ),
            *_sources(chip, scenes),
        ],
        "assets": {
            "image": _image(dates) | _file(chip["image"], chip["image_sha256"], sizes, "../.."),
            "mask": _mask(chip) | _file(chip["mask"], chip["mask_sha256"], sizes, "../.."),
        },
        "collection": collection_id,
    }


def _sources(chip: Mapping[str, Any], scenes: Sequence[str]) -> list[dict[str, str]]:
    """Links to the items of the scenes, to the band files in IPFS, and to the archive of the CDL release."""
    links = [
        {
            "rel": "derived_from",
            "href": f"{_CATALOGUE}/{collection_of(scene)}/items/{scene}",
            "type": GEOJSON_TYPE,
            "title": scene,
        }
        for scene in scenes
    ]
    for position, scene in zip(POSITIONS, scenes, strict=True):
        for band, cid in zip(REFLECTANCE_BANDS, chip[f"{position}_cids"], strict=True):
            if cid:
                name = f"{scene}.{file_band(scene, band)}.tif"
                links.append({"rel": "via", "href": f"ipfs://{cid}", "type": "image/tiff", "title": name})
    if url := _web_address(chip["cdl_release"]):
        links.append({"rel": "via", "href": url, "title": "archive of the Cropland Data Layer"})
    return links


@functools.cache
def _web_address(release: str) -> str:
    """The address of a release's archive; "" if it was not downloaded by https, such as a local one."""
    with contextlib.suppress(AddressError):
        address = read(release)
        return address.url if address.scheme == "https" else ""
    return ""


def _image(dates: Sequence[str] = POSITIONS) -> dict[str, Any]:
    """The asset of an image without its file; without dates, that of all items."""
    return {
        "type": GEOTIFF_TYPE,
        "title": "Surface reflectance on three dates",
        "roles": ["data", "reflectance"],
        "data_type": "int16",
        "nodata": NODATA,
        "raster:scale": 0.0001,
        "raster:spatial_resolution": RESOLUTION,
        "ml-aoi:role": "feature",
        "bands": [
            {
                "name": f"{position}_{band}",
                "description": f"{facts.COLOURS[band]}, {date}",
                "eo:common_name": _COMMON_NAMES[band],
                # micrometres
                "eo:center_wavelength": sum(facts.WAVELENGTHS[band]) / 2000,
            }
            for position, date in zip(POSITIONS, dates, strict=True)
            for band in REFLECTANCE_BANDS
        ],
    }


def _mask(chip: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The asset of a mask without its file; without a chip, that of all items, which has no shares of the classes."""
    return {
        "type": GEOTIFF_TYPE,
        "title": "Classes of the Cropland Data Layer",
        "roles": ["data", "labels"],
        "data_type": "uint8",
        "raster:spatial_resolution": RESOLUTION,
        "ml-aoi:role": "label",
        "classification:classes": [
            {
                "value": value,
                "name": _NAMES[value],
                "title": title,
                "description": f"{title}, by the Cropland Data Layer"
                if value
                else "outside the Cropland Data Layer",
                "color_hint": CLASS_COLOURS[value].removeprefix("#"),
                "nodata": value == 0,
                **({} if chip is None else _amount(chip[f"{CLASS_COLUMNS[value]}_share"])),
            }
            for value, title in enumerate(CLASSES)
        ],
    }


def _amount(share: float) -> dict[str, Any]:
    return {"count": round(share * CHIP_SIZE**2), "percentage": 100 * float(share)}


def _file(name: str, sha256: str, sizes: Mapping[str, int], to_dataset: str) -> dict[str, Any]:
    if name not in sizes:
        raise InputError(f"{name} is not in the table dataset_files; materialize dataset_files again")
    return {
        "href": f"{to_dataset}/{name}",
        "file:size": int(sizes[name]),
        "file:checksum": f"{_SHA256_MULTIHASH}{sha256}",
    }


def collection(
    dataset: str,
    year: int,
    chips: gpd.GeoDataFrame,
    bboxes: Sequence[Sequence[float]],
    files: pd.DataFrame,
    fingerprint: Mapping[Hashable, Any],
) -> dict[str, Any]:
    """The STAC collection of a dataset of a CDL year.

    `chips` is chip_index, `bboxes` are those of its items, `files` is dataset_files, and `fingerprint` the row of that
    table. Its assets are the files of the dataset but chips, exports and band values; README.md and croissant.json,
    which are made from the catalogue, are not among them.
    """
    west, south, east, north = zip(*bboxes, strict=True)
    scenes = pd.concat([chips[f"{position}_scene"] for position in POSITIONS])
    sensors = sorted({parse_scene_id(scene).sensor for scene in scenes.unique()})
    counts = {split: int((chips["split"] == split).sum()) for split in SPLIT_NAMES}
    splits = [split for split in SPLIT_NAMES if counts[split]]
    shown = ", ".join(f"{counts[split]:,} for {split}" for split in splits)
    licenses = [*_LICENSES, *(_OF_SENSOR[sensor]["license"] for sensor in sensors)]
    sizes = dict(zip(files["file"], files["bytes"], strict=True))
    listed = files[[_is_asset(name) for name in files["file"]]]
    return {
        "type": "Collection",
        "stac_version": _STAC_VERSION,
        "stac_extensions": _OF_COLLECTION,
        "id": f"{dataset}-{year}",
        "title": f"{dataset}, crops of {year}",
        "description": f"{len(chips):,} chips of {CHIP_SIZE} x {CHIP_SIZE} pixels of {RESOLUTION} m ({shown}): surface "
        f"reflectance in six bands on three dates, from Harmonized Landsat Sentinel-2, and the classes of the Cropland "
        f"Data Layer of {year} as labels.\n\nTerms of the sources: "
        + "; ".join(f"[{name}]({page}): {terms}" for name, page, terms in licenses)
        + ".",
        "keywords": ["crops", "land cover", "Cropland Data Layer", "HLS", "machine learning", "segmentation"],
        "license": "other",
        "providers": [*_PROVIDERS, *(_OF_SENSOR[sensor]["provider"] for sensor in sensors), _PROCESSOR],
        "version": fingerprint["fingerprint"],
        "extent": {
            "spatial": {"bbox": [[min(west), min(south), max(east), max(north)]]},
            "temporal": {
                "interval": [
                    [
                        f"{chips['first_date'].min().isoformat()}T00:00:00Z",
                        f"{chips['last_date'].max().isoformat()}T23:59:59Z",
                    ]
                ]
            },
        },
        "summaries": {
            "gsd": [RESOLUTION],
            "instruments": [_OF_SENSOR[sensor]["instrument"] for sensor in sensors],
            "proj:code": [CRS],
            "ml-aoi:split": [_SPLITS[split] for split in splits],
            "crops:tile": sorted(chips["tile"].unique()),
        },
        "item_assets": {"image": _image(), "mask": _mask()},
        "crops:fingerprint": dict(fingerprint),
        "crops:chips": counts,
        "assets": {
            # a browser would lay charts with the role overview over the map
            name: {"type": media_type, "roles": ["data" if media_type == PARQUET_TYPE else "metadata"]}
            | _file(name, sha256, sizes, "..")
            for name, media_type, sha256 in zip(
                listed["file"], listed["media_type"], listed["sha256"], strict=True
            )
        }
        | {
            "items": {
                "href": "./items.parquet",
                "type": PARQUET_TYPE,
                "title": "all items as stac-geoparquet",
                "roles": ["stac-items"],
            }
        },
        "links": [
            {"rel": "root", "href": "./collection.json", "type": JSON_TYPE},
            # Chromium 156 crashes on STAC Browser's list of several
            {"rel": "license", "href": licenses[-1][1], "title": f"{licenses[-1][0]}: {licenses[-1][2]}"},
            *(
                {"rel": "derived_from", "href": f"{_CATALOGUE}/{name}", "type": JSON_TYPE, "title": name}
                for name in sorted({collection_of(scene) for scene in scenes.unique()})
            ),
            *(
                {"rel": "item", "href": f"./items/{chip}.json", "type": GEOJSON_TYPE, "title": chip}
                for chip in chips["chip_id"]
            ),
        ],
    }


def _is_asset(name: str) -> bool:
    # a published dataset has no binaries of band values
    return name == _VIEWER or not (name.startswith(_FOLDERS) or name.endswith(".npy"))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """As ASCII, in one line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def items_table(items: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Items as rows of stac-geoparquet: properties are columns, the geometry is WKB, and the bbox a struct."""
    return pa.Table.from_pylist([_row(item) for item in items])


def _row(item: Mapping[str, Any]) -> dict[str, Any]:
    times = ("datetime", "start_datetime", "end_datetime")
    properties = {
        key: value and dt.datetime.fromisoformat(value) if key in times else value
        for key, value in item["properties"].items()
    }
    others = {key: value for key, value in item.items() if key not in ("properties", "geometry", "bbox")}
    return {
        **others,
        "geometry": shapely.to_wkb(shapely.geometry.shape(item["geometry"])),
        "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), item["bbox"], strict=True)),
        **properties,
    }


def write_items(path: Path, tables: Sequence[pa.Table], bbox: Sequence[float]) -> None:
    """Write tables of items as one file of GeoParquet 1.1, with the columns of stac-geoparquet 1.0."""
    table = pa.concat_tables(tables, promote_options="permissive")
    at = table.schema.get_field_index("datetime")
    table = table.set_column(at, "datetime", table["datetime"].cast(pa.timestamp("us", "UTC")))
    covering = {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "orientation": "counterclockwise",
        "bbox": list(bbox),
        "covering": {"bbox": covering},
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    metadata = {"geo": json.dumps(geo), "stac-geoparquet": json.dumps({"version": "1.0.0"})}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")
