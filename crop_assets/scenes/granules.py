"""Reads STAC items and metadata documents of HLS granules into rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import defusedxml.ElementTree
import numpy as np
import pandas as pd
import shapely
import shapely.geometry
from numpy.typing import NDArray
from shapely.errors import ShapelyError

from crop_assets.errors import InputError
from crop_assets.hls import BANDS, SceneName, file_band, parse_scene_id
from crop_assets.polygons import make_valid
from resources.errors import IntegrityError
from resources.json_values import MALFORMED, count, mapping, number, objects, parse, text
from resources.stac import SET_ASIDE

_MAX_CROSSINGS = 100
"""A footprint has about ten vertices, and a tile a hundred footprints or more."""
_LP_DAAC = "data.lpdaac.earthdatacloud.nasa.gov"


@dataclass(frozen=True)
class GranuleDocument:
    """What a granule's metadata document adds to its STAC item.

    A percentage is None if it is missing or not from 0 to 100, which `problem` reports. `size` is the size of all files
    in bytes, 0 if unknown.
    """

    cloud_cover: float | None
    spatial_coverage: float | None
    links: tuple[str, ...]
    size: int
    problem: str


def parse_document(data: bytes) -> GranuleDocument:
    """Read a granule's UMM-JSON or ECHO-10 XML; attributes are found by name, in any order.

    An invalid value does not affect the others. Raises IntegrityError if it is neither.
    """
    try:
        attributes, links, sizes = _umm_json(data) if data.lstrip()[:1] == b"{" else _echo_xml(data)
    except (SyntaxError, *MALFORMED) as error:
        raise IntegrityError(f"a granule's metadata document cannot be read: {error!r}") from error
    cloud, no_cloud = _percent("cloud cover", attributes.get("CLOUD_COVERAGE"))
    coverage, no_coverage = _percent("spatial coverage", attributes.get("SPATIAL_COVERAGE"))
    known = [size for size in map(count, sizes) if size is not None]
    # without the size of one file, the sum would be too small
    total = count(sum(known)) if len(known) == len(sizes) else None
    return GranuleDocument(
        cloud, coverage, tuple(filter(None, links)), total or 0, _joined(no_cloud, no_coverage)
    )


def _umm_json(data: bytes) -> tuple[dict[str, Any], list[str], list[Any]]:
    document = mapping(parse(data))
    umm = mapping(document.get("umm", document))
    if not {"GranuleUR", "AdditionalAttributes"} & set(umm):
        raise ValueError("it is not that of a granule")
    attributes = {
        text(attribute.get("Name")): attribute["Values"][0]
        for attribute in objects(umm.get("AdditionalAttributes"))
        if isinstance(attribute.get("Values"), list) and attribute["Values"]
    }
    parts = objects(mapping(umm.get("DataGranule")).get("ArchiveAndDistributionInformation"))
    links = [text(link.get("URL")) for link in objects(umm.get("RelatedUrls"))]
    return attributes, links, [part.get("SizeInBytes") for part in parts]


def _echo_xml(data: bytes) -> tuple[dict[str, Any], list[str], list[Any]]:
    root = defusedxml.ElementTree.fromstring(data)
    if root.tag != "Granule":
        raise ValueError(f"it is <{root.tag}>, not <Granule>")
    attributes = {
        a.findtext("Name", ""): a.findtext("Values/Value", "") for a in root.iter("AdditionalAttribute")
    }
    size = root.findtext("DataGranule/DataGranuleSizeInBytes", "0")
    return attributes, [link.text or "" for link in root.iter("URL")], [size]


def _percent(what: str, value: Any) -> tuple[float | None, str]:
    """A percentage or None, and why a given value is invalid."""
    found = number(value, 0, 100)
    if found is not None or value is None or value == "":
        return found, ""
    return None, f"{what} {value!r:.40} is not from 0 to 100"


def _joined(*problems: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, problems)))


def unusable(item: Mapping[str, Any]) -> str:
    """Why an item of a catalogue cannot be used as a scene; "" if it can."""
    if why := item.get(SET_ASIDE):
        return str(why)
    try:
        parse_scene_id(item["id"])
    except (IntegrityError, ValueError) as error:
        return str(error)
    return ""


def scene_rows(
    items: Sequence[dict[str, Any]],
    documents: Mapping[str, str],
    tile: str,
    sensors: Sequence[str],
    chips: Sequence[shapely.Geometry],
) -> pd.DataFrame:
    """One row per scene of `tile` by one of `sensors`, and one for each item that is `unusable`, sorted by id.

    Items of other tiles are left out. Cloud cover and spatial coverage are read from the item if it has them, else from
    its metadata document in `documents`, by scene id. A missing or invalid value is unknown and does not affect the
    others; a scene without a cloud cover and coverage from 0 to 100 is not fit, and `problem` has the invalid values.
    `problem` also has the reason why an item is unusable; its row has neither date nor figures. `chips` are the
    outlines of the tile's chips in degrees. Columns: `crop_assets.schemas.SCENE_METADATA`.
    """
    outlines = np.array(chips, dtype=object)
    rows = []
    for item in items:
        if why := unusable(item):
            rows.append(_row_without_scene(item, tile, why))
            continue
        name = parse_scene_id(item["id"])
        if name.tile == tile and name.sensor in sensors:
            rows.append(_scene_row(item, documents.get(item["id"]), name, outlines))
    return pd.DataFrame(rows).sort_values("scene_id", ignore_index=True) if rows else pd.DataFrame()


def _row_without_scene(item: Mapping[str, Any], tile: str, why: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scene_id": item["id"][:200],
        "tile": tile,
        "date": None,
        "cloud_cover": None,
        "spatial_coverage": None,
        "chip_coverage": None,
        "granule_bytes": 0,
        "missing_bands": "",
        "problem": f"set aside: {why}",
    }
    return row | {f"{band}_{kind}": "" for band in BANDS for kind in ("http", "s3")}


def _scene_row(
    item: dict[str, Any], document: str | None, name: SceneName, chips: NDArray[np.object_]
) -> dict[str, Any]:
    cloud, coverage, problem = _item_percentages(item)
    links: tuple[str, ...] = ()
    size = 0
    if document:
        try:
            read = parse_document(document.encode())
        except IntegrityError as error:
            problem = _joined(problem, str(error))
        else:
            links, size, problem = read.links, read.size, _joined(problem, read.problem)
            cloud = read.cloud_cover if cloud is None else cloud
            coverage = read.spatial_coverage if coverage is None else coverage
    s3_links = {link.rsplit("/", 1)[-1]: link for link in links if link.startswith("s3://")}
    assets = mapping(item.get("assets"))
    listed = {band: assets.get(file_band(item["id"], band)) for band in BANDS}
    row: dict[str, Any] = {
        "scene_id": item["id"],
        "tile": name.tile,
        "date": name.sensed.date(),
        "cloud_cover": cloud,
        "spatial_coverage": coverage,
        "chip_coverage": _chip_coverage(item, chips),
        "granule_bytes": size,
        "missing_bands": " ".join(band for band in BANDS if not isinstance(listed[band], Mapping)),
        "problem": problem,
    }
    for band in BANDS:
        href = text(mapping(listed[band]).get("href"))
        file = f"{item['id']}.{file_band(item['id'], band)}.tif"
        row[f"{band}_http"] = href if href.startswith(("http://", "https://")) else ""
        row[f"{band}_s3"] = s3_links.get(file, _s3_link(href))
    return row


def _chip_coverage(item: dict[str, Any], chips: NDArray[np.object_]) -> float | None:
    """Percentage of the chips' area that is inside the scene's footprint; None if the footprint is invalid."""
    if not len(chips):
        return None
    try:
        shape = shapely.geometry.shape(item["geometry"])
        (footprint,) = make_valid(np.array([shape], dtype=object), _MAX_CROSSINGS)
        if not np.isfinite(footprint.bounds).all():
            return None
        shared = shapely.area(shapely.intersection(chips, footprint)).sum()
    except (InputError, ShapelyError, *MALFORMED):
        return None
    # rounding may make it slightly more than 100
    return number(min(float(100 * shared / shapely.area(chips).sum()), 100.0), 0, 100)


def _item_percentages(item: Mapping[str, Any]) -> tuple[float | None, float | None, str]:
    """Cloud cover and spatial coverage from the item itself, and which values are invalid."""
    properties = mapping(item.get("properties"))
    cloud, no_cloud = _percent("cloud cover", properties.get("eo:cloud_cover"))
    given = properties.get("spatial_coverage", properties.get("SPATIAL_COVERAGE"))
    coverage, no_coverage = _percent("spatial coverage", given)
    return cloud, coverage, _joined(no_cloud, no_coverage)


def document_url(item: Mapping[str, Any]) -> str:
    """The address of the document with the item's cloud cover and spatial coverage: UMM-JSON if there is a link to one,
    else XML; "" if the item has both itself, or no such link.
    """
    if None not in _item_percentages(item)[:2]:
        return ""
    links = [text(link.get("href")) for link in objects(item.get("links")) if link.get("rel") == "via"]
    links.append(text(mapping(mapping(item.get("assets")).get("metadata")).get("href")))
    for ending in (".umm_json", ".xml"):
        for href in links:
            if href.endswith(ending):
                return href
    return ""


def _s3_link(href: str) -> str:
    """LP DAAC's direct-access link; its bucket and key are the path of the HTTPS link."""
    path = href.removeprefix(f"https://{_LP_DAAC}/")
    return f"s3://{path}" if path != href else ""


def lp_daac_links(scene_id: str) -> dict[str, str]:
    """The columns `<band>_http` and `<band>_s3` of a scene: the links that LP DAAC's catalogue has for its files."""
    name = parse_scene_id(scene_id)
    collection = f"HLS{name.sensor}.0{name.version.replace('.', '')}"
    links = {}
    for band in BANDS:
        file = f"{scene_id}.{file_band(scene_id, band)}.tif"
        links[f"{band}_http"] = f"https://{_LP_DAAC}/lp-prod-protected/{collection}/{scene_id}/{file}"
        links[f"{band}_s3"] = _s3_link(links[f"{band}_http"])
    return links
