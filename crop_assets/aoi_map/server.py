"""Serves the page for drawing an area of interest on loopback, and saves the drawing."""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from crop_assets.aoi_map.area import Area, Count, tiles_geojson
from crop_assets.aoi_map.drawing import MAX_BYTES, Drawing, read_drawing
from crop_assets.aoi_map.picture import CHOSEN_COLOUR, MAX_ZOOM, MIN_ZOOM, ChipPicture, class_colours
from crop_assets.errors import InputError
from crop_assets.layout import Layout
from crop_assets.leaflet import leaflet_folder
from crop_assets.local_server import protect
from resources.addresses import AddressError, read
from resources.errors import IntegrityError, ResourceError, UnsafeNameError
from resources.store import DatasetStore

DEFAULT_PORT = 8350

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}\.(geojson|json)", re.ASCII)
_TILE_ADDRESS = re.compile(r"(\d{1,2})/(\d{1,6})/(\d{1,6})\.png", re.ASCII)
_EXAMPLE_MAP = "https://tile.openstreetmap.org/{z}/{x}/{y}.png"
_JSON_TYPES = {"application/json", "application/geo+json"}


@dataclass(frozen=True)
class AoiFile:
    """The file in the store to which the area of interest is saved."""

    store: DatasetStore
    name: str

    @classmethod
    def of(cls, store: DatasetStore, name: str) -> "AoiFile":
        """Raises InputError if the name is not a plain file name, or the file cannot be edited."""
        if not _NAME.fullmatch(name):
            raise InputError(
                f"--name {name!r} must be a plain file name of letters, digits, '-', '_' and '.' "
                "that ends in .geojson or .json"
            )
        file = cls(store, name)
        file.read()
        return file

    @property
    def path(self) -> str:
        """The path to use as `aoi` in a recipe."""
        path = self.store.path(self.name)
        return str(Path(path.path).absolute()) if self.store.is_local else str(path)

    def read(self) -> tuple[Drawing, str] | None:
        """The drawing and its entity tag, or None if there is no file.

        Raises InputError if the file cannot be read, or is not a valid drawing.
        """
        try:
            data = self._bytes()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if data is None:
            return None
        try:
            return read_drawing(data), _tag(data)
        except InputError as error:
            raise self._not_editable(error) from None

    def tag(self) -> str | None:
        """The entity tag of the file, or None if there is no file. Raises InputError if it cannot be a drawing."""
        data = self._bytes()
        return None if data is None else _tag(data)

    def _bytes(self) -> bytes | None:
        try:
            return self.store.read_bytes(self.name, MAX_BYTES)
        except FileNotFoundError:
            return None
        except (IntegrityError, UnsafeNameError) as error:
            raise self._not_editable(error) from None

    def _not_editable(self, error: Exception) -> InputError:
        return InputError(f"{self.name} cannot be edited here: {error}; choose another --name")

    def write(self, data: bytes) -> str:
        self.store.write_bytes(self.name, data)
        return _tag(data)


def check_base_map(template: str) -> str:
    """The origin of a base map's tiles, for the Content-Security-Policy; "" for no base map.

    Raises InputError if the template is not an http(s) address with {z}, {x} and {y}.
    """
    if not template:
        return ""
    try:
        # Leaflet replaces {s} by a letter, to spread requests over several host names
        address = read(template.replace("://{s}.", "://", 1))
    except AddressError as error:
        raise InputError(
            f"--base-map {error}; use an address such as {_EXAMPLE_MAP}, or an empty one for no base map"
        ) from None
    if not all(variable in template.split("/", 3)[-1] for variable in ("{z}", "{x}", "{y}")):
        raise InputError(
            f"--base-map {template!r} must contain {{z}}, {{x}} and {{y}}, for example {_EXAMPLE_MAP}"
        )
    origin = address.url.split("/")[2]
    return f"{address.scheme}://{'*.' if '://{s}.' in template else ''}{origin}"


@dataclass(frozen=True)
class AoiPage:
    """The requests of the page: boxes and tiles, counts for a drawing, and loading and saving the file.

    `saved` is called after each save, with the counts.
    """

    area: Area
    layout: Layout
    file: AoiFile
    base_map: str
    saved: Callable[[Count], None]

    def app(self) -> Starlette:
        """The application. Raises InputError if the base map is invalid."""
        routes = [
            Route("/area.json", self._describe),
            Route("/chips/{address:path}", self._chips),
            Route("/count", self._count, methods=["POST"]),
            Route("/aoi", self._read, methods=["GET"]),
            Route("/aoi", self._save, methods=["PUT"]),
            Mount("/leaflet", StaticFiles(directory=leaflet_folder())),
            Mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True)),
        ]
        handlers = dict.fromkeys((InputError, ResourceError), _error_response)
        app = Starlette(routes=routes, exception_handlers=handlers)
        protect(app, _JSON_TYPES, _headers(check_base_map(self.base_map)))
        return app

    @cached_property
    def _picture(self) -> ChipPicture:
        return ChipPicture(self.area.boxes, self.area.chosen)

    @cached_property
    def _saving(self) -> threading.Lock:
        return threading.Lock()

    def _describe(self, request: Request) -> Response:
        recipe, boxes = self.area.recipe, self.area.boxes
        west, south, east, north = boxes.total_bounds.tolist()
        return JSONResponse(
            {
                "dataset": self.layout.dataset,
                "year": self.layout.year,
                "path": self.file.path,
                "bounds": [[south, west], [north, east]],
                "boxes": len(boxes),
                "min_classes": recipe.min_classes,
                "rule": self.area.rule,
                "has_chosen": self.area.chosen is not None,
                "class_colours": class_colours(),
                "chosen_colour": CHOSEN_COLOUR,
                "min_zoom": MIN_ZOOM,
                "base_map": self.base_map,
                "tiles": tiles_geojson(self.area.tiles),
            }
        )

    def _chips(self, request: Request) -> Response:
        match = _TILE_ADDRESS.fullmatch(request.path_params["address"])
        zoom, x, y = map(int, match.groups()) if match else (0, 0, 0)
        if not (MIN_ZOOM <= zoom <= MAX_ZOOM and x < 2**zoom and y < 2**zoom):
            return JSONResponse({"error": "there is no such map tile"}, 404)
        return Response(self._picture.png(zoom, x, y), media_type="image/png")

    async def _count(self, request: Request) -> Response:
        drawing = read_drawing(await _body(request))
        return JSONResponse(asdict(await run_in_threadpool(self.area.count, drawing.frame())))

    def _read(self, request: Request) -> Response:
        found = self.file.read()
        if found is None:
            return Response(status_code=204)
        drawing, tag = found
        return Response(drawing.to_bytes(), media_type="application/geo+json", headers={"ETag": tag})

    async def _save(self, request: Request) -> Response:
        match, none_match = (request.headers.get(name) for name in ("if-match", "if-none-match"))
        if match is None and none_match != "*":
            return JSONResponse({"error": "send If-Match, or If-None-Match: *, to say what to replace"}, 428)
        drawing = read_drawing(await _body(request))
        return await run_in_threadpool(self._replace, match, drawing)

    def _replace(self, expected: str | None, drawing: Drawing) -> Response:
        """Save a drawing if the current file has the entity tag `expected`; None means that there is no file."""
        aoi = drawing.frame()
        self.area.require_boxes(aoi)
        try:
            with self._saving:
                current = self.file.tag()
                if current != expected:
                    error = f"{self.file.path} has changed since it was loaded here"
                    return JSONResponse({"error": error}, 412, {"ETag": current} if current else {})
                tag = self.file.write(drawing.to_bytes())
        except OSError as failure:
            reason = failure.strerror or str(failure)
            return JSONResponse({"error": f"{self.file.path} cannot be written: {reason}"}, 500)
        count = self.area.count(aoi)
        self.saved(count)
        return JSONResponse({"path": self.file.path, **asdict(count)}, headers={"ETag": tag})


def _headers(images: str) -> dict[str, str]:
    """Response headers; `images` is an additional origin of pictures."""
    return {
        "Content-Security-Policy": f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: "
        f"{images}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        # OpenStreetMap requires a referrer
        "Referrer-Policy": "strict-origin-when-cross-origin",
        "Cache-Control": "no-store",
    }


async def _body(request: Request) -> bytes:
    """The body of a request; reading stops as soon as it is too large for a drawing."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            break
    return bytes(body)


def _error_response(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422 if isinstance(error, InputError) else 503)


def _tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'
