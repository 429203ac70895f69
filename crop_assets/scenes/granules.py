"""HLS granules: their names, and what their STAC items and metadata documents say of them.

Belongs here: reading names, items and documents into rows. Does not: asking servers
(`resources.stac`), choosing scenes (`selection`).
"""

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import defusedxml.ElementTree
import numpy as np
import pandas as pd
import shapely
import shapely.geometry
from numpy.typing import NDArray
from shapely.errors import ShapelyError

from crop_assets.layout import file_band
from crop_assets.recipe import QA_BAND, REFLECTANCE_BANDS
from resources.errors import IntegrityError

FILES = (*REFLECTANCE_BANDS, QA_BAND)

_SCENE = re.compile(
    r"HLS\.(?P<sensor>[SL]30)\.T(?P<tile>\d{2}[C-X][A-Z]{2})\.(?P<day>\d{7})(T(?P<time>\d{6}))?\.v(?P<version>\d\.\d)"
)
_LP_DAAC = "data.lpdaac.earthdatacloud.nasa.gov"


@dataclass(frozen=True)
class SceneName:
    """What a scene id such as HLS.S30.T13TDE.2022111T174859.v2.0 tells (HLS user guide, section 6)."""

    sensor: str
    tile: str
    sensed: dt.datetime
    version: str


def parse_scene_id(scene_id: str) -> SceneName:
    """Raises IntegrityError for anything that is not an HLS scene id, ValueError for a day that no year has."""
    match = _SCENE.fullmatch(str(scene_id))
    if not match:
        raise IntegrityError(
            f"{scene_id!r} is not an HLS scene id such as HLS.S30.T13TDE.2022111T174859.v2.0"
        )
    sensed = dt.datetime.strptime(match["day"] + (match["time"] or "000000"), "%Y%j%H%M%S").replace(
        tzinfo=dt.UTC
    )
    return SceneName(match["sensor"], match["tile"], sensed, match["version"])


def collection_of(scene_id: str) -> str:
    """The STAC collection of a scene, as CMR-STAC and the EASIER STAC name it, such as HLSS30_2.0."""
    name = parse_scene_id(scene_id)
    return f"HLS{name.sensor}_{name.version}"


@dataclass(frozen=True)
class GranuleDocument:
    """What a granule's metadata document adds to its STAC item.

    Percentages, None where it says nothing; the bytes of all its files together, 0 where it does not say.
    """

    cloud_cover: float | None
    spatial_coverage: float | None
    links: tuple[str, ...]
    size: int


def parse_document(data: bytes) -> GranuleDocument:
    """Read a granule's UMM-JSON or ECHO-10 XML; attributes are found by name, whatever their order.

    Raises IntegrityError where it is neither.
    """
    try:
        attributes, links, size = _umm_json(data) if data.lstrip()[:1] == b"{" else _echo_xml(data)
        cloud, coverage = (_percent(attributes, name) for name in ("CLOUD_COVERAGE", "SPATIAL_COVERAGE"))
        return GranuleDocument(cloud, coverage, tuple(links), size)
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise IntegrityError(f"a granule's metadata document cannot be read: {error!r}") from error


def _umm_json(data: bytes) -> tuple[dict[str, str], list[str], int]:
    document = json.loads(data)
    umm = document.get("umm", document)
    attributes = {a["Name"]: a["Values"][0] for a in umm.get("AdditionalAttributes", []) if a.get("Values")}
    parts = umm.get("DataGranule", {}).get("ArchiveAndDistributionInformation", [])
    size = sum(int(part.get("SizeInBytes", 0)) for part in parts)
    return attributes, [link["URL"] for link in umm.get("RelatedUrls", [])], size


def _echo_xml(data: bytes) -> tuple[dict[str, str], list[str], int]:
    root = defusedxml.ElementTree.fromstring(data)
    attributes = {
        a.findtext("Name", ""): a.findtext("Values/Value", "") for a in root.iter("AdditionalAttribute")
    }
    size = int(root.findtext("DataGranule/DataGranuleSizeInBytes", "0"))
    return attributes, [link.text or "" for link in root.iter("URL")], size


def _percent(attributes: dict[str, str], name: str) -> float | None:
    return float(attributes[name]) if attributes.get(name) not in (None, "") else None


def scene_rows(
    items: Sequence[dict[str, Any]],
    documents: Mapping[str, str],
    tile: str,
    sensors: Sequence[str],
    chips: Sequence[shapely.Geometry],
) -> tuple[pd.DataFrame, list[str]]:
    """One row per scene of `tile` by one of `sensors`, sorted by id, and a line for each item that was set aside.

    Items of other tiles are left out. Spatial coverage is read from the item where it has it, else from its metadata
    document among `documents`, by scene id. A scene without either keeps an empty coverage and is not fit to be
    selected. `chips` are the outlines of the tile's chips in degrees. Columns:
    `crop_assets.scenes.assets.SCENE_METADATA`.
    """
    outlines = np.array(chips, dtype=object)
    rows, aside = [], []
    for item in items:
        try:
            name = parse_scene_id(item["id"])
            if name.tile == tile and name.sensor in sensors:
                rows.append(_scene_row(item, documents.get(item["id"]), name, outlines))
        except (IntegrityError, ValueError, TypeError, KeyError, AttributeError) as error:
            aside.append(f"{item.get('id')!r} is left out: {error}")
    frame = pd.DataFrame(rows).sort_values("scene_id", ignore_index=True) if rows else pd.DataFrame()
    return frame, aside


def _scene_row(
    item: dict[str, Any], text: str | None, name: SceneName, chips: NDArray[np.object_]
) -> dict[str, Any]:
    properties = item["properties"]
    coverage = _own_coverage(properties)
    cloud = properties.get("eo:cloud_cover")
    links: tuple[str, ...] = ()
    size = 0
    if coverage is None and text:
        document = parse_document(text.encode())
        coverage, links, size = document.spatial_coverage, document.links, document.size
        cloud = document.cloud_cover if cloud is None else cloud
    s3_links = {link.rsplit("/", 1)[-1]: link for link in links if link.startswith("s3://")}
    row: dict[str, Any] = {
        "scene_id": item["id"],
        "tile": name.tile,
        "date": name.sensed.date(),
        "cloud_cover": None if cloud is None else float(cloud),
        "spatial_coverage": None if coverage is None else float(coverage),
        "chip_coverage": _chip_coverage(item, chips),
        "granule_bytes": size,
        "missing_bands": " ".join(
            band for band in FILES if file_band(item["id"], band) not in item["assets"]
        ),
    }
    for band in FILES:
        named = file_band(item["id"], band)
        href = str(item["assets"].get(named, {}).get("href", ""))
        row[f"{band}_http"] = href if href.startswith(("http://", "https://")) else ""
        row[f"{band}_s3"] = s3_links.get(f"{item['id']}.{named}.tif", _s3_link(href))
    return row


def _chip_coverage(item: dict[str, Any], chips: NDArray[np.object_]) -> float | None:
    """Share of the chips' area in percent that lies in the scene's footprint; None where that is no shape."""
    if not len(chips):
        return None
    try:
        footprint = shapely.make_valid(shapely.geometry.shape(item["geometry"]))
        shared = shapely.area(shapely.intersection(chips, footprint)).sum()
        return float(100 * shared / shapely.area(chips).sum())
    except (ShapelyError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _own_coverage(properties: Mapping[str, Any]) -> Any:
    return properties.get("spatial_coverage", properties.get("SPATIAL_COVERAGE"))


def document_url(item: dict[str, Any]) -> str:
    """The metadata document that is needed to know the item's coverage: UMM-JSON where it links to one, else XML.

    "" where the item tells its coverage itself, or links to neither.
    """
    if _own_coverage(item.get("properties") or {}) is not None:
        return ""
    links = [link["href"] for link in item.get("links", []) if link.get("rel") == "via"]
    links += [asset["href"] for key, asset in item.get("assets", {}).items() if key == "metadata"]
    for ending in (".umm_json", ".xml"):
        for href in links:
            if str(href).endswith(ending):
                return str(href)
    return ""


def _s3_link(href: str) -> str:
    """LP DAAC's direct-access link, whose bucket and key are the path of its HTTPS link."""
    parts = urlsplit(href)
    return f"s3:/{parts.path}" if parts.hostname == _LP_DAAC else ""
