"""HLS granules: reading their STAC items and metadata documents into rows."""

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
"""A footprint has some ten vertices, and a question some hundred footprints."""
_LP_DAAC = "data.lpdaac.earthdatacloud.nasa.gov"


@dataclass(frozen=True)
class GranuleDocument:
    """What a granule's metadata document adds to its STAC item.

    The percentages are None where it gives none, or one that is not from 0 to 100, which `problem` quotes; `size` is
    that of all its files in bytes, 0 where it does not say.
    """

    cloud_cover: float | None
    spatial_coverage: float | None
    links: tuple[str, ...]
    size: int
    problem: str


def parse_document(data: bytes) -> GranuleDocument:
    """Read a granule's UMM-JSON or ECHO-10 XML; attributes are found by name, whatever their order.

    What is odd about one of its values leaves the others as they are. Raises IntegrityError where it is neither.
    """
    try:
        attributes, links, sizes = _umm_json(data) if data.lstrip()[:1] == b"{" else _echo_xml(data)
    except (SyntaxError, *MALFORMED) as error:
        raise IntegrityError(f"a granule's metadata document cannot be read: {error!r}") from error
    cloud, no_cloud = _percent("cloud cover", attributes.get("CLOUD_COVERAGE"))
    coverage, no_coverage = _percent("spatial coverage", attributes.get("SPATIAL_COVERAGE"))
    known = [size for size in map(count, sizes) if size is not None]
    # with the size of a file unknown, that of all would be taken for less than it is
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
    """A percentage, or None; and why one that is given is none."""
    found = number(value, 0, 100)
    if found is not None or value is None or value == "":
        return found, ""
    return None, f"{what} {value!r:.40} is not from 0 to 100"


def _joined(*problems: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, problems)))


def unusable(item: Mapping[str, Any]) -> str:
    """Why an item of a catalogue is no scene that can be used; "" where it is one."""
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

    Items of other tiles are left out. Cloud cover and spatial coverage are read from the item where it has them, else
    from its metadata document among `documents`, by scene id. Each value that is missing, or not what it should be, is
    unknown by itself: without a cloud cover or coverage from 0 to 100 a scene is not fit to be selected, and `problem`
    says what was refused. `problem` also says why an item is unusable, which has neither date nor figures. `chips` are
    the outlines of the tile's chips in degrees. Columns: `crop_assets.scenes.assets.SCENE_METADATA`.
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
    cloud, coverage, problem = _own_percentages(item)
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
    """Share of the chips' area in percent that lies in the scene's footprint; None where that is no shape."""
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
    # sums of areas may come out a hair above
    return number(min(float(100 * shared / shapely.area(chips).sum()), 100.0), 0, 100)


def _own_percentages(item: Mapping[str, Any]) -> tuple[float | None, float | None, str]:
    """Cloud cover and spatial coverage by the item itself, and what of them was refused."""
    properties = mapping(item.get("properties"))
    cloud, no_cloud = _percent("cloud cover", properties.get("eo:cloud_cover"))
    told = properties.get("spatial_coverage", properties.get("SPATIAL_COVERAGE"))
    coverage, no_coverage = _percent("spatial coverage", told)
    return cloud, coverage, _joined(no_cloud, no_coverage)


def document_url(item: Mapping[str, Any]) -> str:
    """The metadata document that is needed to know the item's cloud cover and spatial coverage: UMM-JSON where it links
    to one, else XML.

    "" where the item tells both itself, or links to neither.
    """
    if None not in _own_percentages(item)[:2]:
        return ""
    links = [text(link.get("href")) for link in objects(item.get("links")) if link.get("rel") == "via"]
    links.append(text(mapping(mapping(item.get("assets")).get("metadata")).get("href")))
    for ending in (".umm_json", ".xml"):
        for href in links:
            if href.endswith(ending):
                return href
    return ""


def _s3_link(href: str) -> str:
    """LP DAAC's direct-access link, whose bucket and key are the path of its HTTPS link."""
    path = href.removeprefix(f"https://{_LP_DAAC}/")
    return f"s3://{path}" if path != href else ""
