"""Synthetic HLS v2.0 scenes, S30 and L30, of the land in a CDL raster, in the file format of LP DAAC."""

import datetime as dt
import functools
import hashlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from scipy import ndimage

from crop_assets.classes import reclassify
from crop_assets.demo.landscape import smooth_surface
from crop_assets.hls import (
    ADJACENT,
    AEROSOL_AVERAGE,
    AEROSOL_HIGH,
    AEROSOL_LOW,
    CLOUD,
    HLS_SIZE,
    NODATA,
    QA_BAND,
    QA_NODATA,
    REFLECTANCE_BANDS,
    SHADOW,
    SNOW,
    WATER,
    file_band,
)
from crop_assets.labels.cdl import check_cdl
from resources.geodata import create_raster, open_raster
from resources.ipfs.unixfs import file_cid

_COARSE = 4
"""Clouds outside the CDL's area are drawn at a quarter of the resolution: four times faster, and small on disk."""

_CELL = 122
"""Side in pixels of the squares of land outside the CDL's area."""

_GRAIN = 16
"""Step of the sensor noise, in 0.0001 of reflectance; finer steps would double the size of the files."""

_SHADOW_SHIFT = (-40, -55)
"""Offset from a cloud to its shadow in rows and columns: the sun is in the south-east at the overpass."""

Codes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]
Reals = npt.NDArray[np.float64]
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class TileFrame:
    """The pixel grid of an HLS tile: 3660 x 3660 pixels of 30 m, north up, in UTM zone `epsg`."""

    tile: str
    epsg: int
    left: float
    top: float

    @property
    def transform(self) -> Affine:
        return Affine(30, 0, self.left, 0, -30, self.top)


@dataclass(frozen=True)
class Event:
    """A local disturbance of a scene, with its centre and radius in tile pixels.

    A `cloud` has a shadow to its north-west; `snow` is on the ground; a `gap` is fill in all bands and Fmask; a `dead`
    detector leaves fill in B11 only.
    """

    kind: Literal["cloud", "snow", "gap", "dead"]
    row: float
    col: float
    radius: float


@dataclass(frozen=True)
class ScenePlan:
    """One scene to make. `sensed` is in UTC.

    `clouds` is the share of the tile under clouds, all of them outside the CDL's area unless `overcast`;
    `seen` is the approximate share of the tile inside the swath.
    """

    scene_id: str
    frame: TileFrame
    sensed: dt.datetime
    clouds: float = 0.0
    overcast: bool = False
    seen: float = 1.0
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class DemoFile:
    """A written file: bytes, SHA-256 in hex, and its CID in Kubo."""

    size: int
    sha256: str
    cid: str


@dataclass(frozen=True)
class Scene:
    """A written scene, with metadata that match its rasters.

    `cloud_coverage` is the share of cloud or shadow in the covered area, and `spatial_coverage` is the share of the
    tile that is covered, both as integers in percent. That shadow counts was measured: 8.3 % of the Fmask of
    HLS.S30.T13RCN.2024128T173909.v2.0 is cloud and 8.9 % is cloud or shadow, and it is tagged with 9. `footprint` is a
    closed ring of longitudes and latitudes; `files` has one entry per band, by its name in the scene's files.
    """

    scene_id: str
    tile: str
    epsg: int
    left: float
    top: float
    sensed: dt.datetime
    cloud_coverage: int
    spatial_coverage: int
    footprint: tuple[tuple[float, float], ...]
    files: dict[str, DemoFile]

    def file_name(self, band: str) -> str:
        return f"{self.scene_id}.{band}.tif"


def render_scene(plan: ScenePlan, cdl: Path, folder: Path) -> Scene:
    """Write the seven files of a scene to `folder`; the same plan and CDL give the same bytes.

    Reflectance is int16 in 0.0001 with fill -9999, Fmask is uint8 with fill 255. The folder is complete when it
    appears, and replaces an older one. A process reads `cdl` once for all scenes; codes without a class are drawn as
    other land.
    """
    land = _land(cdl, plan.frame)
    rng = np.random.default_rng(_seed(plan.scene_id))
    fmask, opacity = _sky(rng, plan, land)
    seen = int(np.count_nonzero(fmask != QA_NODATA))
    hidden = int(np.count_nonzero(_has(fmask, CLOUD | SHADOW)))
    cloud, coverage = round(100 * hidden / max(1, seen)), round(100 * seen / fmask.size)

    frame = plan.frame
    tags = _tags(plan, cloud, coverage)
    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    files: dict[str, DemoFile] = {}
    for band, pixels in _reflectance(rng, plan, land, fmask, opacity):
        name = file_band(plan.scene_id, band)
        path = writing / f"{plan.scene_id}.{name}.tif"
        _write(path, pixels, frame, NODATA, tags | _BAND_TAGS)
        files[name] = _measure(path)
    path = writing / f"{plan.scene_id}.{QA_BAND}.tif"
    _write(path, fmask, frame, QA_NODATA, tags | _QA_TAGS)
    files[QA_BAND] = _measure(path)
    shutil.rmtree(folder, ignore_errors=True)
    writing.rename(folder)

    return Scene(
        scene_id=plan.scene_id,
        tile=frame.tile,
        epsg=frame.epsg,
        left=frame.left,
        top=frame.top,
        sensed=plan.sensed,
        cloud_coverage=cloud,
        spatial_coverage=coverage,
        footprint=_footprint(plan),
        files=files,
    )


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def _has(fmask: Codes, bits: int) -> Mask:
    hits: Mask = ((fmask & bits) != 0) & (fmask != QA_NODATA)
    return hits


@dataclass(frozen=True)
class _Land:
    """The fields of a tile: `fields` is int32 (3660, 3660), an index into the arrays with one entry per field.

    `area` is the part of the tile with the CDL, and `inside` marks the pixels there with CDL data; `lag` is in days;
    `vigour` and `brightness` are factors near 1.
    """

    fields: Int32s
    area: tuple[slice, slice]
    inside: Mask
    classes: Codes
    lag: Reals
    vigour: Reals
    brightness: Reals

    @property
    def water(self) -> Mask:
        wet: Mask = (self.classes == 7)[self.fields]
        return wet


@functools.lru_cache(maxsize=1)
def _patches(cdl: Path) -> tuple[Int32s, Codes, str, Affine]:
    """Connected patches with one CDL code, numbered from 1, and the class of each; 0 is not used.

    Natural land is split further along a random relief, because it does not look uniform over miles.
    """
    with open_raster(Path(cdl)) as raster:
        codes = raster.read(1)
        crs, transform = raster.crs.to_wkt(), raster.transform
    classes = reclassify(codes, str(cdl), check_cdl(cdl, "other").table)
    relief = np.digitize(smooth_surface(np.random.default_rng(1), codes.shape, 14), (-1, -0.3, 0.3, 1))
    kinds = codes.astype(np.int16) * 8 + np.where(np.isin(classes, (0, 1, 2)), relief, 0)
    labels = np.zeros(codes.shape, np.int32)
    patch_classes = [np.zeros(1, np.uint8)]
    count = 0
    for kind in np.unique(kinds):
        patches, found = ndimage.label(kinds == kind)
        labels += np.where(patches > 0, patches + count, 0).astype(np.int32)
        patch_classes.append(np.full(found, classes[kinds == kind][0]))
        count += found
    return labels, np.concatenate(patch_classes), crs, transform


@functools.lru_cache(maxsize=2)
def _land(cdl: Path, frame: TileFrame) -> _Land:
    labels, classes, crs, transform = _patches(cdl)
    fields = np.zeros((HLS_SIZE, HLS_SIZE), np.int32)
    rasterio.warp.reproject(
        labels,
        fields,
        src_crs=crs,
        src_transform=transform,
        dst_crs=f"EPSG:{frame.epsg}",
        dst_transform=frame.transform,
        resampling=rasterio.warp.Resampling.nearest,
    )
    inside = fields > 0
    rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    area = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if rows.size else (slice(0), slice(0))

    cells = HLS_SIZE // _CELL
    cell = np.arange(HLS_SIZE) // _CELL
    beyond = np.random.default_rng(_seed(frame.tile)).choice(
        np.array([1, 1, 3, 4, 8, 8, 12], np.uint8), cells**2
    )
    np.copyto(fields, cell[:, None] * cells + cell + len(classes), where=~inside, casting="unsafe")
    classes = np.concatenate([classes, beyond])
    rng = np.random.default_rng(2)
    return _Land(
        fields=fields,
        area=area,
        inside=inside[area],
        classes=classes,
        lag=rng.normal(0, 5, len(classes)),
        vigour=rng.uniform(0.82, 1.05, len(classes)),
        brightness=rng.normal(1, 0.06, len(classes)).clip(0.8, 1.2),
    )


# Reflectance in 0.0001 of B02, B03, B04, B8A, B11, B12, with typical shapes from spectral libraries.
_SOIL = np.array([850, 1150, 1500, 2250, 3050, 2550.0])
_LEAF = np.array([230, 560, 290, 4700, 1950, 850.0])
_STRAW = np.array([950, 1450, 2000, 3250, 3550, 2450.0])
_LAKE = np.array([520, 640, 480, 260, 130, 90.0])
_CITY = np.array([1150, 1300, 1450, 2150, 2300, 2000.0])
_CLOUD_TOP = np.array([6200, 6200, 6400, 7000, 4600, 3600.0])
_SNOW_COVER = np.array([7800, 7900, 7800, 7200, 1100, 900.0])


@dataclass(frozen=True)
class _Cover:
    """A class through the year: shares of leaf and straw by day of the year; the rest is ground."""

    leaf: Curve
    straw: Curve = ((0, 0.0),)
    ground: Reals = field(default_factory=_SOIL.copy)
    shade: float = 1.0

    def spectra(self, days: Reals, vigour: Reals) -> Reals:
        """Reflectance in 0.0001, float64 (fields, 6), of fields at `days` of the year."""
        leaf = (_along(self.leaf, days) * vigour)[:, None]
        straw = _along(self.straw, days)[:, None] * (1 - leaf)
        mixed: Reals = leaf * _LEAF + straw * _STRAW + (1 - leaf - straw) * self.ground
        return self.shade * mixed


def _along(curve: Curve, days: Reals) -> Reals:
    knots = np.array(curve, dtype=np.float64)
    return np.asarray(np.interp(days, knots[:, 0], knots[:, 1]), dtype=np.float64)


_STUBBLE: Curve = ((60, 0.4), (120, 0.25), (150, 0.05), (230, 0.05), (258, 0.6), (280, 0.7))
_GRASSLAND = _Cover(
    leaf=((60, 0.08), (95, 0.2), (125, 0.5), (160, 0.62), (195, 0.45), (230, 0.35), (270, 0.2)),
    straw=((60, 0.75), (100, 0.6), (130, 0.35), (200, 0.45), (270, 0.7)),
)
_COVERS = {  # by class value
    0: _GRASSLAND,
    1: _GRASSLAND,
    2: _Cover(
        leaf=((60, 0.12), (95, 0.2), (120, 0.75), (150, 0.95), (245, 0.85), (275, 0.6)),
        straw=((60, 0.4), (110, 0.2), (130, 0.0)),
        shade=0.72,
    ),
    3: _Cover(
        leaf=((125, 0.03), (148, 0.2), (172, 0.8), (200, 0.97), (228, 0.85), (252, 0.3), (265, 0.06)),
        straw=_STUBBLE,
    ),
    4: _Cover(
        leaf=((135, 0.03), (160, 0.2), (185, 0.65), (212, 0.98), (240, 0.85), (258, 0.35), (272, 0.06)),
        straw=_STUBBLE,
    ),
    5: _Cover(
        leaf=((60, 0.1), (100, 0.25), (140, 0.7), (220, 0.75), (270, 0.35)),
        ground=0.5 * _LAKE + 0.5 * _SOIL,
        shade=0.75,
    ),
    6: _Cover(leaf=((60, 0.08), (130, 0.28), (240, 0.25), (275, 0.15)), ground=_CITY),
    7: _Cover(leaf=((0, 0.0),), ground=_LAKE),
    8: _Cover(
        leaf=((60, 0.35), (85, 0.6), (112, 0.92), (132, 0.9), (148, 0.45), (162, 0.06), (240, 0.04)),
        straw=((130, 0.05), (150, 0.5), (165, 0.95), (205, 0.85), (235, 0.4), (275, 0.1)),
    ),
    9: _Cover(
        leaf=(
            *((60, 0.3), (95, 0.7)),
            *(knot for cut in (122, 148, 176, 204, 234) for knot in ((cut, 0.95), (cut + 6, 0.3))),
            (265, 0.8),
        )
    ),
    10: _Cover(leaf=((60, 0.08), (150, 0.1), (275, 0.12)), straw=((60, 0.35), (200, 0.15), (275, 0.1))),
    11: _Cover(leaf=((145, 0.03), (172, 0.2), (202, 0.65), (232, 0.88), (258, 0.65), (275, 0.4))),
    12: _Cover(
        leaf=((150, 0.03), (180, 0.3), (208, 0.8), (236, 0.85), (258, 0.5), (275, 0.2)),
        straw=_STUBBLE,
        shade=0.94,
    ),
    13: _Cover(
        leaf=((70, 0.2), (110, 0.7), (140, 0.8), (165, 0.3), (185, 0.15), (215, 0.5), (255, 0.4)),
        straw=((150, 0.1), (172, 0.7), (195, 0.4), (260, 0.3)),
    ),
}


def _reflectance(
    rng: np.random.Generator, plan: ScenePlan, land: _Land, fmask: Codes, opacity: Codes
) -> Iterator[tuple[str, Int16s]]:
    """Name and pixels of each band: int16 (3660, 3660) in 0.0001 of reflectance, fill -9999."""
    day = plan.sensed.timetuple().tm_yday
    spectra = np.empty((len(land.classes), len(REFLECTANCE_BANDS)))
    for value, cover in _COVERS.items():
        of_class = land.classes == value
        spectra[of_class] = cover.spectra(day - land.lag[of_class], land.vigour[of_class])
    spectra *= land.brightness[:, None]

    cloudy = np.flatnonzero(opacity)
    veil = opacity.ravel()[cloudy] / 255
    shaded = np.flatnonzero(_has(fmask, SHADOW) & (opacity == 0))
    snowy = np.flatnonzero(_has(fmask, SNOW))
    unseen = fmask == QA_NODATA
    for number, band in enumerate(REFLECTANCE_BANDS):
        pixels = spectra[:, number].astype(np.int16)[land.fields]
        grain = rng.normal(0, 0.6, land.inside.shape).round().astype(np.int16) * np.int16(_GRAIN)
        pixels[land.area] += np.where(land.inside, grain, np.int16(0))
        flat = pixels.reshape(-1)
        flat[snowy] = (0.25 * flat[snowy] + 0.75 * _SNOW_COVER[number]).astype(np.int16)
        flat[shaded] = (0.45 * flat[shaded]).astype(np.int16)
        flat[cloudy] = (flat[cloudy] + veil * (_CLOUD_TOP[number] - flat[cloudy])).astype(np.int16)
        np.maximum(pixels, 1, out=pixels)
        pixels[unseen] = NODATA
        if band == "B11":
            for event in plan.events:
                if event.kind == "dead":
                    part, away = _around(event, event.radius)
                    pixels[part][away < event.radius] = NODATA
        yield band, pixels


def _around(event: Event, reach: float, shift: tuple[int, int] = (0, 0)) -> tuple[tuple[slice, slice], Reals]:
    """The part of the tile within `reach` of an event, and the distance of each pixel from its centre."""
    row, col = event.row + shift[0], event.col + shift[1]
    part = tuple(slice(max(0, int(at - reach)), min(HLS_SIZE, int(at + reach) + 2)) for at in (row, col))
    rows, cols = np.mgrid[part]
    return (part[0], part[1]), np.hypot(rows - row, cols - col)


def _sky(rng: np.random.Generator, plan: ScenePlan, land: _Land) -> tuple[Codes, Codes]:
    """Fmask, and the opacity of clouds from 0 to 255, both uint8 (3660, 3660)."""
    cell = np.arange(HLS_SIZE) // _CELL
    haze = rng.choice(
        np.array([AEROSOL_LOW, AEROSOL_LOW, AEROSOL_AVERAGE], np.uint8), (HLS_SIZE // _CELL,) * 2
    )
    fmask = haze[cell[:, None], cell]
    fmask[land.water] |= WATER

    opacity, shadow, adjacent = _far_clouds(rng, plan, land)
    for event in plan.events:
        if event.kind == "cloud":
            _draw_cloud(rng, event, opacity, shadow, adjacent)
        elif event.kind == "snow":
            part, away = _around(event, event.radius)
            fmask[part][away < event.radius] |= SNOW
    cloud = opacity > 0
    fmask[adjacent & ~cloud & ~shadow] |= ADJACENT
    fmask[shadow & ~cloud] |= SHADOW
    # under clouds, Fmask has neither water nor snow, and a high aerosol level
    fmask[cloud] = AEROSOL_HIGH | CLOUD

    if plan.seen < 1:
        fmask[~_swath(plan)] = QA_NODATA
    for event in plan.events:
        if event.kind == "gap":
            part, away = _around(event, event.radius)
            fmask[part][away < event.radius] = QA_NODATA
    return fmask, opacity


def _far_clouds(rng: np.random.Generator, plan: ScenePlan, land: _Land) -> tuple[Codes, Mask, Mask]:
    """Opacity, shadow and surroundings of the clouds for `plan.clouds`."""
    small = (HLS_SIZE // _COARSE,) * 2
    heap = smooth_surface(rng, small, 44) + 0.35 * smooth_surface(rng, small, 11)
    if not plan.overcast:
        margin = 30
        part = tuple(
            slice(max(0, s.start // _COARSE - margin), s.stop // _COARSE + margin) for s in land.area
        )
        heap[part[0], part[1]] = heap.min()
    base = np.quantile(heap, 1 - plan.clouds) if plan.clouds else np.inf
    cloud = heap > base
    height = np.where(cloud, heap - base, 0.0)
    opacity = np.where(cloud, (0.35 + height).clip(0, 0.95) * 255, 0).astype(np.uint8) & 0xF0
    shadow = np.zeros(small, bool)
    down, left = -_SHADOW_SHIFT[0] // _COARSE, -_SHADOW_SHIFT[1] // _COARSE
    shadow[:-down, :-left] = cloud[down:, left:]
    adjacent = ndimage.binary_dilation(cloud | shadow, iterations=2)

    def enlarge(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)

    return enlarge(opacity), enlarge(shadow), enlarge(adjacent)


def _draw_cloud(rng: np.random.Generator, event: Event, opacity: Codes, shadow: Mask, adjacent: Mask) -> None:
    """Draw a round, uneven cloud and its shadow, each with a rim of 5 adjacent pixels."""
    bumps = rng.uniform(0, 2 * np.pi, 2)
    for shift in (_SHADOW_SHIFT, (0, 0)):
        part, away = _around(event, event.radius * 1.4, shift)
        rows, cols = np.mgrid[part]
        angle = np.arctan2(rows - event.row - shift[0], cols - event.col - shift[1])
        edge = event.radius * (1 + 0.12 * np.sin(3 * angle + bumps[0]) + 0.06 * np.sin(7 * angle + bumps[1]))
        adjacent[part] |= away < edge + 5
        if shift == (0, 0):
            depth = (1.15 - (away / edge) ** 2).clip(0.3, 0.95)
            opacity[part] = np.where(away < edge, depth * 255, opacity[part]).astype(np.uint8)
        else:
            shadow[part] |= away < edge


_SWATH_SLOPE = math.tan(math.radians(13))
"""Columns that the edge of a swath moves west per row south: Sentinel-2 descends towards the south-west."""


def _swath(plan: ScenePlan) -> Mask:
    """The part of the tile west of the swath's eastern edge."""
    inside: Mask = np.arange(HLS_SIZE) + _SWATH_SLOPE * np.arange(HLS_SIZE)[:, None] < _swath_edge(plan)
    return inside


def _swath_edge(plan: ScenePlan) -> float:
    if plan.seen >= 1:
        return np.inf
    # as long as the edge crosses every row, its mean column is the share of the tile inside the swath
    return float(HLS_SIZE * plan.seen + _SWATH_SLOPE * (HLS_SIZE - 1) / 2)


def _footprint(plan: ScenePlan) -> tuple[tuple[float, float], ...]:
    tile = shapely.box(0, 0, HLS_SIZE, HLS_SIZE)
    edge = min(_swath_edge(plan), 3.0 * HLS_SIZE)
    swath = shapely.Polygon(
        [(-HLS_SIZE, 0), (edge, 0), (edge - _SWATH_SLOPE * HLS_SIZE, HLS_SIZE), (-HLS_SIZE, HLS_SIZE)]
    )
    ring = shapely.get_coordinates(tile.intersection(swath).normalize())
    x, y = zip(*(plan.frame.transform @ (col, row) for col, row in ring), strict=True)
    lon, lat = pyproj.Transformer.from_crs(plan.frame.epsg, 4326, always_xy=True).transform(x, y)
    return tuple((round(float(a), 7), round(float(b), 7)) for a, b in zip(lon, lat, strict=True))


_BAND_TAGS = {
    "_FillValue": str(NODATA),
    "add_offset": "0",
    "scale_factor": "0.0001",
    "long_name": "Surface reflectance",
}
_QA_TAGS = {
    "_FillValue": str(QA_NODATA),
    "Fmask bit description": "7-6 aerosol (0 climatology, 1 low, 2 average, 3 high), 5 water, 4 snow/ice, "
    "3 cloud shadow, 2 adjacent to cloud or shadow, 1 cloud, 0 cirrus (unused)",
}


def _tags(plan: ScenePlan, cloud: int, coverage: int) -> dict[str, str]:
    """Metadata with the names of HLS v2.0 files."""
    frame = plan.frame
    return {
        "ACCODE": "LaSRC",
        "cloud_coverage": str(cloud),
        "spatial_coverage": str(coverage),
        "HLS_PROCESSING_TIME": (plan.sensed + dt.timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "HORIZONTAL_CS_CODE": f"EPSG:{frame.epsg}",
        "HORIZONTAL_CS_NAME": f"WGS84 / UTM zone {frame.epsg % 100}N",
        "NCOLS": str(HLS_SIZE),
        "NROWS": str(HLS_SIZE),
        "OVR_RESAMPLING_ALG": "NEAREST",
        "SENSING_TIME": plan.sensed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "SENTINEL2_TILEID": frame.tile,
        "SPATIAL_RESOLUTION": "30",
        "ULX": f"{frame.left:.0f}",
        "ULY": f"{frame.top:.0f}",
    }


def _write(path: Path, pixels: npt.NDArray[Any], frame: TileFrame, nodata: int, tags: dict[str, str]) -> None:
    """Write a cloud-optimized GeoTIFF in the format of LP DAAC."""
    profile: dict[str, Any] = {
        "driver": "COG",
        "dtype": pixels.dtype.name,
        "count": 1,
        "height": HLS_SIZE,
        "width": HLS_SIZE,
        "crs": f"EPSG:{frame.epsg}",
        "transform": frame.transform,
        "nodata": nodata,
        "blocksize": 256,
        "compress": "deflate",
        "predictor": 2,
        "overview_resampling": "nearest",
    }
    with create_raster(path, **profile) as raster:
        raster.write(pixels, 1)
        raster.update_tags(**tags)


def _measure(path: Path) -> DemoFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DemoFile(path.stat().st_size, digest, file_cid(path))
