"""Serves the demo's world on one local port, with the APIs of CMR-STAC, CMR, LP DAAC, the EASIER STAC and an IPFS
gateway.
"""

import contextlib
import datetime as dt
import hashlib
import os
import socket
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import shapely
import shapely.geometry
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from crop_assets.demo.gateway import gateway_routes
from crop_assets.demo.scenes import Scene
from crop_assets.demo.world import World
from crop_assets.errors import InputError
from crop_assets.hls import HLS_SIZE, NODATA, QA_NODATA, collection_of
from resources.loopback import free_port

PAGE = 10
"""Maximum number of items per page, so that even a small world has several pages; CMR-STAC's is 100."""

_TITLES = {
    "HLSS30_2.0": "HLS Sentinel-2 Multi-spectral Instrument Surface Reflectance Daily Global 30m v2.0",
    "HLSL30_2.0": "HLS Landsat Operational Land Imager Surface Reflectance and TOA Brightness Daily Global 30m v2.0",
}
_CONFORMS_TO = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
]
_EO = "https://stac-extensions.github.io/eo/v1.0.0/schema.json"
_SEARCH_AFTER = "CMR-Search-After"
_FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_ALTERNATE = "https://stac-extensions.github.io/alternate-assets/v1.1.0/schema.json"
_START_SECONDS = 20

Json = dict[str, Any]


@dataclass(frozen=True)
class WorldServer:
    """The addresses of a running world's services, without trailing slashes."""

    base_url: str

    @property
    def stac_url(self) -> str:
        return f"{self.base_url}/cmr/stac"

    @property
    def granule_search_url(self) -> str:
        return f"{self.base_url}/cmr/search/granules.umm_json"

    @property
    def ipfs_stac_url(self) -> str:
        return f"{self.base_url}/ipfs-stac"

    @property
    def gateway_url(self) -> str:
        """The base address of `/ipfs/<cid>`."""
        return self.base_url


def create_app(world: World) -> Starlette:
    """The application that serves `world`. Raises ValueError if a file does not match its CID."""
    return Starlette(
        routes=[
            Route("/world.json", _world_route(world)),
            Mount("/cmr/stac", routes=_Catalogue(world, "cmr").routes()),
            Mount("/ipfs-stac", routes=_Catalogue(world, "ipfs").routes()),
            Route("/cmr/search/concepts/{name}", _concept_route(world)),
            Route("/cmr/search/granules.umm_json", _granules_route(world)),
            Route("/lpdaac/{scene}/{file}", _download_route(world)),
            *gateway_routes(world.files),
        ]
    )


@contextlib.contextmanager
def serve(world: World, port: int = 0) -> Iterator[WorldServer]:
    """Serve `world` on 127.0.0.1 while the context is active; port 0 chooses a free port that is likely to stay free.

    Raises InputError if the port is in use.
    """
    try:
        listener = socket.create_server(("127.0.0.1", port or free_port()))
    except OSError as error:
        raise InputError(
            f"port {port} of 127.0.0.1 cannot be used: {os.strerror(error.errno or 0)}; use another, or 0"
        ) from None
    with listener:
        config = uvicorn.Config(
            create_app(world), log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="demo-world", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError("the demo's server did not start; its log says why")
                time.sleep(0.01)
            yield WorldServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


def _world_route(world: World) -> Callable[[Request], Response]:
    def describe(request: Request) -> Response:
        return JSONResponse(
            {
                "fingerprint": world.fingerprint,
                "year": world.year,
                "tiles": world.tiles,
                "scenes": [scene.scene_id for scene in world.scenes],
            }
        )

    return describe


def _download_route(world: World) -> Callable[[Request], Response]:
    paths = {
        (scene.scene_id, scene.file_name(band)): world.band_path(scene, band)
        for scene in world.scenes
        for band in scene.files
    }

    def download(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return Response("log in with a bearer token", 401, {"WWW-Authenticate": "Bearer"})
        path = paths.get((request.path_params["scene"], request.path_params["file"]))
        if path is None:
            return Response("no such file", 404)
        return FileResponse(path, media_type="image/tiff")

    return download


def _when(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _bbox(scene: Scene) -> list[float]:
    return list(shapely.Polygon(scene.footprint).bounds)


def _base(request: Request) -> str:
    """The server's address as used by the client, without a trailing slash."""
    return f"{request.url.scheme}://{request.url.netloc}"


def _lpdaac(base: str, scene: Scene, band: str) -> str:
    return f"{base}/lpdaac/{scene.scene_id}/{scene.file_name(band)}"


def _s3(scene: Scene, band: str) -> str:
    product = collection_of(scene.scene_id).partition("_")[0]
    return f"s3://lp-prod-protected/{product}.020/{scene.scene_id}/{scene.file_name(band)}"


@dataclass(frozen=True)
class _Catalogue:
    """A STAC API for the scenes, with the items of CMR-STAC, or those of the EASIER STAC, which have CIDs."""

    world: World
    kind: Literal["cmr", "ipfs"]

    def routes(self) -> list[Route]:
        return [
            Route(path, endpoint, methods=methods)
            for path, endpoint, methods in (
                ("/", self._landing, ["GET"]),
                ("/conformance", self._conformance, ["GET"]),
                ("/collections", self._collections, ["GET"]),
                ("/collections/{collection}", self._collection, ["GET"]),
                ("/collections/{collection}/items", self._search, ["GET"]),
                ("/collections/{collection}/items/{id}", self._one_item, ["GET"]),
                ("/search", self._search, ["GET", "POST"]),
            )
        ]

    def _root(self, request: Request) -> str:
        return _base(request) + ("/cmr/stac" if self.kind == "cmr" else "/ipfs-stac")

    @property
    def _collection_names(self) -> list[str]:
        """The collections that have scenes."""
        return sorted({collection_of(scene.scene_id) for scene in self.world.scenes}, reverse=True)

    def _landing(self, request: Request) -> Response:
        root = self._root(request)
        json_type, geojson = "application/json", "application/geo+json"
        return JSONResponse(
            {
                "type": "Catalog",
                "stac_version": "1.0.0",
                "id": "LPCLOUD" if self.kind == "cmr" else "easier",
                "title": "The demo's HLS scenes",
                "description": f"Made-up HLS scenes of {self.world.year}.",
                "conformsTo": _CONFORMS_TO,
                "links": [
                    {"rel": "self", "href": f"{root}/", "type": json_type},
                    {"rel": "root", "href": f"{root}/", "type": json_type},
                    {"rel": "conformance", "href": f"{root}/conformance", "type": json_type},
                    {"rel": "data", "href": f"{root}/collections", "type": json_type},
                    *(
                        {"rel": "child", "href": f"{root}/collections/{name}", "type": json_type}
                        for name in self._collection_names
                    ),
                    {"rel": "search", "href": f"{root}/search", "type": geojson, "method": "GET"},
                    {"rel": "search", "href": f"{root}/search", "type": geojson, "method": "POST"},
                ],
            }
        )

    def _conformance(self, request: Request) -> Response:
        return JSONResponse({"conformsTo": _CONFORMS_TO})

    def _collections(self, request: Request) -> Response:
        root = self._root(request)
        links = [
            {"rel": rel, "href": href}
            for rel, href in (("self", f"{root}/collections"), ("root", f"{root}/"))
        ]
        return JSONResponse(
            {"collections": [self._describe(root, name) for name in self._collection_names], "links": links}
        )

    def _collection(self, request: Request) -> Response:
        if request.path_params["collection"] not in self._collection_names:
            raise HTTPException(404, "no such collection")
        return JSONResponse(self._describe(self._root(request), request.path_params["collection"]))

    def _describe(self, root: str, collection: str) -> Json:
        scenes = [scene for scene in self.world.scenes if collection_of(scene.scene_id) == collection]
        bounds = shapely.MultiPolygon([shapely.Polygon(scene.footprint) for scene in scenes]).bounds
        times = sorted(scene.sensed for scene in scenes)
        own = f"{root}/collections/{collection}"
        return {
            "type": "Collection",
            "stac_version": "1.0.0",
            "stac_extensions": [],
            "id": collection,
            "title": _TITLES[collection],
            "description": f"Made-up scenes in the form of {collection.partition('_')[0]} v2.0.",
            "license": "other",
            "extent": {
                "spatial": {"bbox": [list(bounds)]},
                "temporal": {"interval": [[_when(times[0]), _when(times[-1])]]},
            },
            "links": [
                {"rel": "self", "href": own},
                {"rel": "root", "href": f"{root}/"},
                {"rel": "parent", "href": f"{root}/"},
                {"rel": "items", "href": f"{own}/items", "type": "application/geo+json"},
            ],
        }

    def _one_item(self, request: Request) -> Response:
        for scene in self.world.scenes:
            address = {"collection": collection_of(scene.scene_id), "id": scene.scene_id}
            if request.path_params == address:
                return JSONResponse(self._item(request, scene), media_type="application/geo+json")
        raise HTTPException(404, "no such item")

    def _item(self, request: Request, scene: Scene) -> Json:
        base, root = _base(request), self._root(request)
        collection = f"{root}/collections/{collection_of(scene.scene_id)}"
        concept = f"{base}/cmr/search/concepts/{_concept_id(scene)}"
        assets: Json = {
            band: {"href": _lpdaac(base, scene, band), "title": f"Download {scene.file_name(band)}"}
            for band in scene.files
        }
        links = [
            {"rel": "self", "href": f"{collection}/items/{scene.scene_id}"},
            {"rel": "parent", "href": collection},
            {"rel": "collection", "href": collection},
            {"rel": "root", "href": f"{root}/", "type": "application/json"},
        ]
        if self.kind == "cmr":
            links += [{"rel": "via", "href": f"{concept}{suffix}"} for suffix in (".json", ".umm_json")]
            assets["metadata"] = {"href": f"{concept}.xml", "type": "application/xml"}
        else:
            # the EASIER STAC writes CIDs in several forms; use three of them, one per scene
            form = self.world.scenes.index(scene) % 3
            for band, file in scene.files.items():
                href = f"ipfs://{file.cid}" + ("/" if form == 2 else "")
                assets[band]["file:size"] = file.size
                assets[band]["alternate"] = {
                    "s3": {"storage:platform": "AWS", "href": _s3(scene, band)},
                    "ipfs" if form == 1 else "IPFS": {"href": href},
                }
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "stac_extensions": [_EO] if self.kind == "cmr" else [_EO, _ALTERNATE, _FILE],
            "id": scene.scene_id,
            "collection": collection_of(scene.scene_id),
            "bbox": _bbox(scene),
            "geometry": {"type": "Polygon", "coordinates": [scene.footprint]},
            "properties": {
                "datetime": _when(scene.sensed),
                "start_datetime": _when(scene.sensed),
                "end_datetime": _when(scene.sensed),
                "eo:cloud_cover": scene.cloud_coverage,
            },
            "links": links,
            "assets": assets,
        }

    async def _search(self, request: Request) -> Response:
        """Item search; a `token` is the number of items already returned."""
        try:
            query = await request.json() if request.method == "POST" else _from_url(request)
            if collection := request.path_params.get("collection"):
                query["collections"] = [collection]
            scenes = _matching(self.world.scenes, query)
            start, size = int(query.get("token", 0)), min(PAGE, max(1, int(query.get("limit", PAGE))))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HTTPException(400, f"the query cannot be read: {error}") from error
        page = scenes[start : start + size]
        links: list[Json] = [{"rel": "root", "href": f"{self._root(request)}/", "type": "application/json"}]
        if start + size < len(scenes):
            links.append(_next_link(request, query, start + size))
        return JSONResponse(
            {
                "type": "FeatureCollection",
                "features": [self._item(request, scene) for scene in page],
                "links": links,
                "numberMatched": len(scenes),
                "numberReturned": len(page),
            },
            media_type="application/geo+json",
        )


def _next_link(request: Request, query: Json, token: int) -> Json:
    link = {"rel": "next", "type": "application/geo+json", "method": request.method}
    here = f"{_base(request)}{request.url.path}"
    if request.method == "POST":
        return link | {"href": here, "body": query | {"token": str(token)}, "merge": False}
    return link | {"href": f"{here}?{urlencode(dict(request.query_params) | {'token': str(token)})}"}


def _from_url(request: Request) -> Json:
    """The query of a GET search, in the format of the body of a POST search."""
    query: Json = dict(request.query_params)
    for name in ("ids", "collections", "bbox"):
        if name in query:
            query[name] = query[name].split(",")
    return query


def _matching(scenes: tuple[Scene, ...], query: Json) -> list[Scene]:
    """The scenes that match a search. Raises HTTPException 500 for unusual polygons, like CMR-STAC."""
    found = [
        scene
        for scene in scenes
        if (not query.get("collections") or collection_of(scene.scene_id) in query["collections"])
        and (not query.get("ids") or scene.scene_id in query["ids"])
    ]
    area: shapely.Geometry | None = None
    if query.get("bbox"):
        west, south, east, north = map(float, query["bbox"])
        area = shapely.box(west, south, east, north)
    elif query.get("intersects"):
        polygon = shapely.geometry.shape(query["intersects"])
        if not polygon.equals(shapely.box(*polygon.bounds)):
            raise HTTPException(500, "Oops! Something has gone wrong")
        area = polygon
    if area is not None:
        found = [scene for scene in found if shapely.Polygon(scene.footprint).intersects(area)]
    if query.get("datetime"):
        start, _, end = query["datetime"].partition("/")
        first = _moment(start, dt.datetime.min)
        last = _moment(end or start, dt.datetime.max)
        found = [scene for scene in found if first <= scene.sensed <= last]
    return found


def _moment(text: str, otherwise: dt.datetime) -> dt.datetime:
    """An RFC 3339 time, or `otherwise` for the open end of an interval."""
    moment = otherwise if text in ("", "..") else dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _concept_id(scene: Scene) -> str:
    number = int.from_bytes(hashlib.sha256(scene.scene_id.encode()).digest()[:8]) % 10**10
    return f"G{number:010d}-LPCLOUD"


def _attributes(scene: Scene) -> dict[str, str]:
    """Granule attributes, which CMR lists by name."""
    return {
        "CLOUD_COVERAGE": str(scene.cloud_coverage),
        "MGRS_TILE_ID": scene.tile,
        "SPATIAL_COVERAGE": str(scene.spatial_coverage),
        "SPATIAL_RESOLUTION": "30.0",
        "HLS_PROCESSING_TIME": (scene.sensed + dt.timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "SENSING_TIME": _when(scene.sensed),
        "HORIZONTAL_CS_CODE": f"EPSG:{scene.epsg}",
        "ULX": str(scene.left),
        "ULY": str(scene.top),
        "ADD_OFFSET": "0",
        "REF_SCALE_FACTOR": "0.0001",
        "FILLVALUE": str(NODATA),
        "QA_FILLVALUE": str(QA_NODATA),
        "NCOLS": str(HLS_SIZE),
        "NROWS": str(HLS_SIZE),
        "ACCODE": "LaSRC",
    }


def _concept_route(world: World) -> Callable[[Request], Response]:
    scenes = {_concept_id(scene): scene for scene in world.scenes}

    def concept(request: Request) -> Response:
        name, _, suffix = request.path_params["name"].partition(".")
        scene = scenes.get(name)
        if scene is None:
            raise HTTPException(404, f"no granule {name}")
        base = _base(request)
        if suffix == "umm_json":
            return JSONResponse(_umm(base, scene), media_type="application/vnd.nasa.cmr.umm+json")
        if suffix == "json":
            return JSONResponse(_short_json(base, scene))
        if suffix == "xml":
            return Response(_echo_xml(base, scene), media_type="application/echo10+xml")
        raise HTTPException(404, f"granules come as .umm_json, .json and .xml, not as .{suffix}")

    return concept


def _granules_route(world: World) -> Callable[[Request], Response]:
    """The part of CMR's granule search that datasets use: by collection, tile and time, with pages of `page_size`."""

    def search(request: Request) -> Response:
        query = request.query_params
        first, last = (dt.datetime.fromisoformat(day) for day in query["temporal"].split(","))
        tile = query["attribute[]"].removeprefix("string,MGRS_TILE_ID,")
        found = [
            scene
            for scene in world.scenes
            if query["short_name"] == collection_of(scene.scene_id).partition("_")[0]
            and scene.tile == tile
            and first <= scene.sensed <= last
        ]
        start = int(request.headers.get(_SEARCH_AFTER, 0))
        page = found[start : start + int(query["page_size"])]
        more = {_SEARCH_AFTER: str(start + len(page))} if page else {}
        records = [_umm(_base(request), scene) for scene in page]
        return JSONResponse({"hits": len(found), "took": 1, "items": records}, headers=more)

    return search


def _umm(base: str, scene: Scene) -> Json:
    corners = [{"Longitude": lon, "Latitude": lat} for lon, lat in scene.footprint]
    related = []
    for band in scene.files:
        name = scene.file_name(band)
        related += [
            {"URL": _lpdaac(base, scene, band), "Type": "GET DATA", "Description": f"Download {name}"},
            {
                "URL": _s3(scene, band),
                "Type": "GET DATA VIA DIRECT ACCESS",
                "Description": f"{name} within S3",
            },
        ]
    return {
        "meta": {
            "concept-type": "granule",
            "concept-id": _concept_id(scene),
            "revision-id": 1,
            "native-id": scene.scene_id,
            "provider-id": "LPCLOUD",
            "format": "application/echo10+xml",
        },
        "umm": {
            "TemporalExtent": {
                "RangeDateTime": {
                    "BeginningDateTime": _when(scene.sensed),
                    "EndingDateTime": _when(scene.sensed),
                }
            },
            "GranuleUR": scene.scene_id,
            "AdditionalAttributes": [{"Name": k, "Values": [v]} for k, v in _attributes(scene).items()],
            "SpatialExtent": {
                "HorizontalSpatialDomain": {"Geometry": {"GPolygons": [{"Boundary": {"Points": corners}}]}}
            },
            "CollectionReference": {"EntryTitle": _TITLES[collection_of(scene.scene_id)]},
            "DataGranule": {
                "ArchiveAndDistributionInformation": [
                    {"Name": "Not provided", "SizeInBytes": sum(file.size for file in scene.files.values())}
                ]
            },
            "RelatedUrls": related,
            "MetadataSpecification": {
                "URL": "https://cdn.earthdata.nasa.gov/umm/granule/v1.6.6",
                "Name": "UMM-G",
                "Version": "1.6.6",
            },
        },
    }


def _short_json(base: str, scene: Scene) -> Json:
    return {
        "id": _concept_id(scene),
        "title": scene.scene_id,
        "time_start": _when(scene.sensed),
        "time_end": _when(scene.sensed),
        "cloud_cover": str(scene.cloud_coverage),
        "links": [
            {"href": _lpdaac(base, scene, band), "title": scene.file_name(band)} for band in scene.files
        ],
    }


def _echo_xml(base: str, scene: Scene) -> bytes:
    granule = ET.Element("Granule")
    ET.SubElement(granule, "GranuleUR").text = scene.scene_id
    title = _TITLES[collection_of(scene.scene_id)]
    ET.SubElement(ET.SubElement(granule, "Collection"), "DataSetId").text = title
    times = ET.SubElement(ET.SubElement(granule, "Temporal"), "RangeDateTime")
    for name in ("BeginningDateTime", "EndingDateTime"):
        ET.SubElement(times, name).text = _when(scene.sensed)
    boundary = granule
    for name in ("Spatial", "HorizontalSpatialDomain", "Geometry", "GPolygon", "Boundary"):
        boundary = ET.SubElement(boundary, name)
    for lon, lat in scene.footprint[:-1]:
        point = ET.SubElement(boundary, "Point")
        ET.SubElement(point, "PointLongitude").text = str(lon)
        ET.SubElement(point, "PointLatitude").text = str(lat)
    attributes = ET.SubElement(granule, "AdditionalAttributes")
    for name, value in _attributes(scene).items():
        attribute = ET.SubElement(attributes, "AdditionalAttribute")
        ET.SubElement(attribute, "Name").text = name
        ET.SubElement(ET.SubElement(attribute, "Values"), "Value").text = value
    urls = ET.SubElement(granule, "OnlineAccessURLs")
    for band in scene.files:
        for url in (_lpdaac(base, scene, band), _s3(scene, band)):
            ET.SubElement(ET.SubElement(urls, "OnlineAccessURL"), "URL").text = url
    return bytes(ET.tostring(granule, encoding="utf-8", xml_declaration=True))
