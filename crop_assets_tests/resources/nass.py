"""A release index like that of NASS, on loopback, and what can go wrong with it."""

import asyncio
import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crop_assets_tests.resources.loopback import serving
from resources.cdl import CdlReleases

PAGE = """<!DOCTYPE html><html><head><title>USDA - National Agricultural Statistics Service</title></head><body>
<p>The national downloads are zipped. See the <a href="../sarsfaqs2.php">questions</a> and
<a href="metadata.php?year=2022">metadata</a>.</p><table>{rows}</table>
<a href="datasets/2022_10m_cdls.zip">10 m</a> <a href="https://elsewhere.example/2019_30m_cdls.zip">mirror</a>
</body></html>"""


@dataclass
class Nass:
    """The index page and the archives below `datasets/`, each with a strong ETag of its content.

    `broken` maps a path to the status that it is answered with, `moved` to where it is now, `cut` to the number of
    bytes after which the line breaks, once. `dates` has what Last-Modified says, if anything; without a `sizeless`
    HEAD, Content-Length is told.
    """

    address: str = ""
    archives: dict[str, bytes] = field(default_factory=dict)
    page: str | None = None
    broken: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    sizeless: bool = False
    pause: int = 0
    late: float = 0.0
    """Seconds before the answer to a HEAD."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def index(self) -> str:
        return f"{self.address}/Release/index.php"

    def releases(self, folder: Path, **settings: Any) -> CdlReleases:
        return CdlReleases(**{"source": str(folder), "index": self.index, "attempts": 2, **settings})

    def put(self, year: int, archive: bytes) -> str:
        """Release a year, or release it again; returns the archive's address."""
        self.archives[f"/Release/datasets/{year}_30m_cdls.zip"] = archive
        return f"{self.address}/Release/datasets/{year}_30m_cdls.zip"

    def asked_for(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, method = scope["path"], scope["method"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((method, path, headers.get("range", "")))
        await asyncio.sleep(self.late if method == "HEAD" else 0)
        status, fields, data = self._answer(path, headers)
        if not (self.sizeless and method == "HEAD"):
            fields["Content-Length"] = str(len(data))
        head = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        if method == "GET" and path in self.cut:
            # fewer bytes than announced: the server closes the line
            data = data[: self.cut.pop(path)]
            await send({"type": "http.response.body", "body": data, "more_body": True})
            return
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else data})

    def _answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if path in self.moved:
            return 301, {"Location": self.moved[path]}, b""
        if path in self.broken:
            return self.broken[path], {"Retry-After": str(self.pause)} if self.pause else {}, b"out of order"
        if path == "/Release/index.php":
            links = [f'<tr><td><a href="datasets{name[17:]}">{name[18:]}</a>' for name in self.archives]
            page = self.page if self.page is not None else PAGE.format(rows="".join(links))
            return 200, {"Content-Type": "text/html"}, page.encode()
        if path not in self.archives:
            return 404, {}, b"no such file"
        data = self.archives[path]
        tag = self.etags.get(path, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        fields = {"ETag": tag, "Accept-Ranges": "bytes"}
        if path in self.dates:
            fields["Last-Modified"] = self.dates[path]
        if "range" in headers and headers.get("if-range") == tag:
            first = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
            part = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return 206, {**fields, "Content-Range": part}, data[first:]
        return 200, fields, data


@pytest.fixture
def nass() -> Iterator[Nass]:
    """An index that lists nothing yet."""
    nass = Nass()
    with serving(nass) as nass.address:
        yield nass


def archive_of(path: Path, raster: Path, name: str, **others: str) -> bytes:
    """A release's archive: the raster under its name, and other members by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(raster, name)
        for other, text in others.items():
            archive.writestr(other, text)
    return path.read_bytes()
