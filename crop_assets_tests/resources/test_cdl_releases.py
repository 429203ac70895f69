import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import trustme

from crop_assets_tests.resources.loopback import closed_port, serving
from crop_assets_tests.resources.nass import Nass
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.resources.test_http_earthdata import authority as authority
from crop_assets_tests.resources.test_http_earthdata import names as names
from resources.cdl import CdlReleases, archive_links, raster_files, raster_sha256, same_release, year_of
from resources.errors import IntegrityError, NotFoundError, RefusedError, UnavailableError

NASS = "https://www.nass.usda.gov/Research_and_Science/Cropland/Release/"


@pytest.mark.parametrize(
    ("href", "address"),
    [
        ("datasets/2022_30m_cdls.zip", f"{NASS}datasets/2022_30m_cdls.zip"),
        (" ./datasets/2022_30m_cdls.zip\n", f"{NASS}datasets/2022_30m_cdls.zip"),
        ("/Research/2022_30m_cdls.zip?v=2", "https://www.nass.usda.gov/Research/2022_30m_cdls.zip?v=2"),
        (f"{NASS}datasets/2022_30m_cdls.zip", f"{NASS}datasets/2022_30m_cdls.zip"),
        (
            "https://files.www.nass.usda.gov/2022_30m_cdls.zip",
            "https://files.www.nass.usda.gov/2022_30m_cdls.zip",
        ),
    ],
)
def test_a_link_to_a_national_archive_is_found(href: str, address: str) -> None:
    assert archive_links(f'<p>See <A class=x HREF="{href}"><b>2022</b></a>', NASS) == {2022: address}


@pytest.mark.parametrize(
    "href",
    [
        "datasets/2022_10m_cdls.zip",
        "datasets/2022_30m_cdls.zip.md5",
        "datasets/022_30m_cdls.zip",
        "datasets/2021_2022_30m_cdls.zip",
        "datasets/12022_30m_cdls.zip",
        "datasets/0022_30m_cdls.zip",
        "https://elsewhere.example/2022_30m_cdls.zip",
        "http://www.nass.usda.gov/2022_30m_cdls.zip",
        "https://user@www.nass.usda.gov/2022_30m_cdls.zip",
        "file:///data/2022_30m_cdls.zip",
        "https://[broken/2022_30m_cdls.zip",
        "?file=2022_30m_cdls.zip",
    ],
)
def test_other_links_and_other_sites_are_left_alone(href: str) -> None:
    assert archive_links(f'<a href="{href}">2022</a><a>none</a><a href>none</a>', NASS) == {}


def test_the_first_link_of_a_year_counts() -> None:
    page = (
        '<a href="a/2022_30m_cdls.zip"></a><a href="b/2022_30m_cdls.zip"></a><a href="2021_30m_cdls.zip"></a>'
    )
    assert archive_links(page, NASS) == {
        2022: f"{NASS}a/2022_30m_cdls.zip",
        2021: f"{NASS}2021_30m_cdls.zip",
    }


def test_releases_of_the_index_have_version_and_size(nass: Nass, tmp_path: Path) -> None:
    nass.put(2022, b"two")
    nass.put(2021, b"three")
    found = nass.releases(tmp_path).releases()
    assert [(release.year, release.size) for release in found] == [(2021, 5), (2022, 3)]
    assert found[0].version != found[1].version
    assert found[1].location == nass.put(2022, b"another")
    assert nass.releases(tmp_path).releases()[1].version != found[1].version
    assert "GET" not in {method for method, path, _ in nass.asked if path.endswith(".zip")}


def test_a_listed_file_that_is_not_there_is_no_release_yet(nass: Nass, tmp_path: Path) -> None:
    nass.put(2021, b"one")
    nass.put(2022, b"two")
    nass.broken["/Release/datasets/2022_30m_cdls.zip"] = 404
    assert [release.year for release in nass.releases(tmp_path).releases()] == [2021]


def test_a_file_that_does_not_answer_is_an_error_and_not_a_missing_release(
    nass: Nass, tmp_path: Path
) -> None:
    nass.put(2021, b"one")
    nass.put(2022, b"two")
    nass.broken["/Release/datasets/2022_30m_cdls.zip"] = 500
    with pytest.raises(UnavailableError, match=r"2022_30m_cdls\.zip answered 500"):
        nass.releases(tmp_path, attempts=1).releases()


def test_a_look_at_all_releases_has_an_end_together(
    nass: Nass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in range(2000, 2020):
        nass.put(year, b"x")
    monkeypatch.setattr("resources.cdl.LOOK_SECONDS", 2.0)
    nass.late = 0.5
    with pytest.raises(UnavailableError, match=r"_30m_cdls\.zip is too slow"):
        nass.releases(tmp_path).releases()
    assert len(nass.asked_for("HEAD")) <= 5


def test_a_look_does_not_wait_for_as_long_as_a_server_asks(nass: Nass, tmp_path: Path) -> None:
    nass.put(2021, b"one")
    nass.broken["/Release/datasets/2021_30m_cdls.zip"] = 503
    nass.pause = 100
    with pytest.raises(UnavailableError, match=r"2021_30m_cdls\.zip"):
        nass.releases(tmp_path).releases()
    assert len(nass.asked_for("HEAD")) == 1


def test_an_etag_is_kept_as_text_that_can_be_shown(nass: Nass, tmp_path: Path) -> None:
    path = "/Release/datasets/2022_30m_cdls.zip"
    nass.put(2022, b"x")
    versions = []
    for tag in ('"\x9b2J\x85\xad"', '"' + "\x9b" * 5000 + '"', '"' + "a" * 5000 + '"'):
        nass.etags[path] = tag
        (found,) = nass.releases(tmp_path).releases()
        assert found.version.isprintable()
        assert len(found.version) < 250
        versions.append(found.version)
    # a server of the tests sends UTF-8, and headers are read as Latin-1
    assert versions[0] == r'1 "Â\x9b2JÂ\x85Â\xad"'
    assert versions[2] == '1 "' + "a" * 199, "as an earlier look kept it"


def test_a_page_without_links_is_an_error_and_not_an_empty_list(nass: Nass, tmp_path: Path) -> None:
    nass.put(2022, b"two")
    nass.page = "<html><script>render()</script></html>"
    with pytest.raises(
        IntegrityError, match=r"has no link to a <year>_30m_cdls\.zip; if.*CROP_ASSETS_CDL_INDEX"
    ):
        nass.releases(tmp_path).releases()
    nass.page = "<!--" + "x" * (5 << 20)
    with pytest.raises(IntegrityError, match="answered more than 1,048,576 bytes"):
        nass.releases(tmp_path).releases()


def test_an_index_that_is_no_address_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"must be an https address.*'www\.nass\.usda\.gov' is not an address"
    ):
        CdlReleases(index="www.nass.usda.gov")


def test_an_index_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    releases = CdlReleases(source=str(tmp_path), index=f"{closed_port()}/Release/", attempts=1)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        releases.releases()


def test_without_an_etag_size_and_date_are_the_version(nass: Nass, tmp_path: Path) -> None:
    nass.put(2022, b"two")
    nass.etags["/Release/datasets/2022_30m_cdls.zip"] = ""
    assert nass.releases(tmp_path).releases()[0].version == "3"
    nass.put(2022, b"other")
    assert nass.releases(tmp_path).releases()[0].version == "5"


def test_links_are_relative_to_where_the_page_was_found(nass: Nass, tmp_path: Path) -> None:
    address = nass.put(2022, b"two")
    nass.moved["/Release"] = "/Release/index.php"
    (found,) = nass.releases(tmp_path, index=f"{nass.address}/Release").releases()
    assert found.location == address
    nass.page = '<base href="/Release/"><base href="/Other/"><a href="datasets/2022_30m_cdls.zip">2022</a>'
    (found,) = nass.releases(tmp_path).releases()
    assert found.location == address


def own(folder: Path, name: str, text: str = "mine") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_files_of_ones_own_come_before_the_index(nass: Nass, tmp_path: Path) -> None:
    nass.put(2021, b"one")
    nass.put(2022, b"two")
    raster = own(tmp_path, "2022_30m_cdls.tif")
    own(tmp_path, "2022_30m_cdls.zip")
    archive = own(tmp_path, "2019_30m_cdls.zip")
    own(tmp_path, "notes.txt")
    places = {release.year: release.location for release in nass.releases(tmp_path).releases()}
    assert places == {2019: str(archive), 2021: nass.put(2021, b"one"), 2022: str(raster)}


def test_a_raster_that_was_fetched_gives_way_to_the_index_unless_there_is_none(
    nass: Nass, tmp_path: Path
) -> None:
    nass.put(2022, b"two")
    raster = own(tmp_path, "2022_30m_cdls.tif")
    own(tmp_path, "2022_30m_cdls.release.json", "{}")
    assert [r.location for r in nass.releases(tmp_path).releases()] == [nass.put(2022, b"two")]
    assert [r.location for r in nass.releases(tmp_path, index="").releases()] == [str(raster)]


def test_a_file_that_changes_is_another_version(tmp_path: Path) -> None:
    path = own(tmp_path, "2022_30m_cdls.tif")
    releases = CdlReleases(source=str(path), index="")
    (before,) = releases.releases()
    assert releases.releases() == [before]
    os.utime(path, ns=(1, 1))
    (after,) = releases.releases()
    assert (after.year, after.location) == (2022, str(path))
    assert after.version != before.version


def test_a_path_with_the_year_in_it_lists_all_years(tmp_path: Path) -> None:
    for year in (2020, 2021):
        own(tmp_path, f"cdl-{year}.tif")
    releases = CdlReleases(source=str(tmp_path / "cdl-{year}.tif"))
    assert [release.year for release in releases.releases()] == [2020, 2021]
    assert not releases.fetches
    assert releases.release(2023) is None


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("2019_30m_cdls.tif", 2019),
        ("CDL_2019_clip_20220315112233_2020.tif", 2019),
        ("20220315-cdl-2019.img", 2019),
        ("cdl_30m_2019_v2022.TIFF", 2019),
        ("2019.vrt", 2019),
        ("cdl20221_2019.ZIP", 2019),
        ("cdl-20190.tif", None),
        ("cdl-201.img", None),
    ],
)
def test_a_file_is_of_the_year_that_its_name_says_first(tmp_path: Path, name: str, year: int | None) -> None:
    assert year_of(name) == year
    path = own(tmp_path, name)
    releases = CdlReleases(source=str(path))
    # what the sensor sees: once, and of no other year
    assert [(r.year, r.location) for r in releases.releases()] == ([(year, str(path))] if year else [])
    for other in {2019, 2020, 2022} - {year}:
        what = f"is the raster of {year} by its name" if year else "has no year in its name"
        with pytest.raises(NotFoundError, match=rf"{name} {what}, but {other} is needed"):
            releases.find(other)
        with pytest.raises(NotFoundError, match=what):
            releases.release(other)
    if year and path.suffix != ".ZIP":
        assert releases.find(year) == path


def test_the_year_in_a_path_is_where_the_name_has_its_year(tmp_path: Path) -> None:
    own(tmp_path, "CDL_2021_clip_2022.tif")
    releases = CdlReleases(source=str(tmp_path / "CDL_2021_clip_{year}.tif"))
    assert releases.releases() == []
    with pytest.raises(NotFoundError, match="is the raster of 2021 by its name, but 2022 is needed"):
        releases.find(2022)


def test_the_year_may_be_in_a_folders_name(tmp_path: Path) -> None:
    for year in (2020, 2021):
        (tmp_path / f"{year}").mkdir()
        own(tmp_path / f"{year}", "usda2000.tif")
    releases = CdlReleases(source=str(tmp_path / "{year}/usda2000.tif"))
    assert [release.year for release in releases.releases()] == [2020, 2021]
    assert releases.find(2021) == tmp_path / "2021/usda2000.tif"


def test_a_year_that_the_index_does_not_list_is_told_with_those_that_it_does(
    nass: Nass, tmp_path: Path
) -> None:
    nass.put(2021, b"one")
    nass.put(2022, b"two")
    with pytest.raises(NotFoundError, match=r"lists no release of 2031, only of 2021, 2022$"):
        nass.releases(tmp_path).release(2031)


def made_of(folder: Path, value: int) -> Path:
    """A .vrt of a .vrt of an .img whose pixels are in an .ige, all with the place of the national grid."""
    folder.mkdir()
    place = rasterio.Affine(30, 0, -2356095, 0, -30, 3172605)
    profile = {
        "width": 300,
        "height": 300,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:5070",
        "transform": place,
    }
    with rasterio.open(folder / "usda.img", "w", driver="HFA", USE_SPILL="YES", **profile) as raster:
        raster.write(np.full((1, 300, 300), value, np.uint8))
    with rasterio.open(folder / "usda.img") as raster:
        rasterio.shutil.copy(raster, folder / "inner.vrt", driver="VRT")
    inner = (folder / "inner.vrt").read_text()
    assert "usda.img" in inner
    (folder / "2019.vrt").write_text(inner.replace("usda.img", "inner.vrt"))
    return folder / "2019.vrt"


def test_a_raster_is_all_the_files_that_its_pixels_are_read_from(tmp_path: Path) -> None:
    path, other = made_of(tmp_path / "a", 1), made_of(tmp_path / "b", 5)
    assert [file.name for file in raster_files(path)] == ["2019.vrt", "inner.vrt", "usda.ige", "usda.img"]
    releases = CdlReleases(source=str(path))
    (before,), sha256 = releases.releases(), raster_sha256(path)
    assert (raster_sha256(path), releases.find_same(2019, sha256)) == (sha256, path)
    # the same size, and the header as it was
    shutil.copyfile(other.with_name("usda.ige"), path.with_name("usda.ige"))
    with rasterio.open(path) as raster:
        assert (raster.read(1) == 5).all()
    assert raster_sha256(path) == raster_sha256(other) != sha256
    (after,) = releases.releases()
    assert (after.version != before.version, after.size) == (True, before.size)
    with pytest.raises(NotFoundError, match=r"2019\.vrt is no longer the file that cdl described"):
        releases.find_same(2019, sha256)
    path.with_name("usda.img").unlink()
    with pytest.raises(NotFoundError, match=r"inner\.vrt is read from .*usda\.img, which is not a local"):
        releases.find_same(2019, sha256)


def test_georeferencing_beside_a_raster_counts_and_overviews_do_not(tmp_path: Path) -> None:
    path = tmp_path / "2019.tif"
    with rasterio.open(made_of(tmp_path / "a", 1)) as raster:
        rasterio.shutil.copy(raster, path, driver="GTiff", BLOCKXSIZE=128, BLOCKYSIZE=128, TILED="YES")
    plain = hashlib.sha256(path.read_bytes()).hexdigest()
    assert raster_sha256(path) == plain
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as raster:
        raster.build_overviews([2])
    assert path.with_name("2019.tif.ovr").is_file()
    assert raster_sha256(path) == plain
    place = "<PAMDataset><GeoTransform>-2356065, 30, 0, 3172605, 0, -30</GeoTransform></PAMDataset>"
    path.with_name("2019.tif.aux.xml").write_text(place)
    with rasterio.open(path) as raster:
        assert raster.transform.c == -2356065
    assert raster_sha256(path) != plain


MONDAY, TUESDAY = "Mon, 24 Feb 2025 13:00:00 GMT", "Tue, 25 Feb 2025 13:00:00 GMT"


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"date": MONDAY, "etag": '"a"'}, {"date": MONDAY, "etag": '"b"'}, True),
        ({"date": MONDAY, "etag": '"a"'}, {"date": "Mon, 24 Feb 2025 14:00:00 +0100", "etag": ""}, True),
        ({"date": MONDAY, "etag": '"a"'}, {"date": TUESDAY, "etag": '"b"'}, False),
        ({"date": MONDAY, "etag": '"a"'}, {"date": MONDAY, "etag": '"a"', "size": 4}, False),
        ({"date": MONDAY}, {"date": TUESDAY}, False),
        ({"date": MONDAY, "etag": '"a"'}, {"etag": '"b"'}, True),
        ({"date": "yesterday", "etag": '"a"'}, {"date": "today", "etag": '"a"'}, True),
        ({"date": MONDAY, "size": 0}, {"date": MONDAY, "size": 0, "etag": '"b"'}, True),
        ({"date": MONDAY, "size": 0}, {"date": TUESDAY, "size": 0}, False),
        ({"etag": '"a"'}, {"etag": 'W/"a"'}, True),
        ({"etag": 'W/"a"'}, {"etag": 'W/"b"'}, False),
        ({"etag": '"a"', "size": 0}, {"etag": '"a"', "size": 3}, True),
        ({"etag": '"a"', "size": 0}, {"etag": '"b"', "size": 0}, False),
        ({"etag": "as it was"}, {"etag": '"as it was"'}, True),
        ({}, {}, True),
        ({}, {"size": 4}, False),
        ({"etag": '"a"'}, {"date": MONDAY, "size": 4}, False),
    ],
)
def test_date_and_size_tell_a_release_and_an_etag_where_there_is_no_date(
    nass: Nass, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], same: bool
) -> None:
    versions = []
    for told in (before, after):
        path = "/Release/datasets/2019_30m_cdls.zip"
        nass.put(2019, b"x" * (told.get("size", 3) or 3))
        nass.sizeless = told.get("size") == 0
        nass.etags[path] = told.get("etag", "")
        nass.dates[path] = told.get("date", "")
        (found,) = nass.releases(tmp_path).releases()
        versions.append(found.version)
    assert same_release(*versions) is same


def test_a_version_that_an_earlier_look_kept_as_the_bare_etag_is_known(nass: Nass, tmp_path: Path) -> None:
    nass.put(2019, b"one")
    nass.etags["/Release/datasets/2019_30m_cdls.zip"] = 'W/"a-1"'
    (found,) = nass.releases(tmp_path).releases()
    assert same_release('"a-1"', found.version)
    assert not same_release('"a-2"', found.version)
    assert not same_release("3-1700000000000000000", found.version), "a file of one's own"


def test_a_file_that_tells_neither_date_nor_size_nor_etag_is_an_error(nass: Nass, tmp_path: Path) -> None:
    nass.put(2019, b"one")
    nass.etags["/Release/datasets/2019_30m_cdls.zip"] = ""
    nass.sizeless = True
    with pytest.raises(IntegrityError, match="has no ETag, date or size"):
        nass.releases(tmp_path).releases()


@pytest.fixture
def sister(nass: Nass, authority: trustme.CA, names: dict[str, int]) -> Iterator[Nass]:
    """NASS by its real names over TLS, where it has moved to another path and host."""
    hosts = ("www.nass.usda.gov", "nass.usda.gov", "data.nass.usda.gov", "mirror.example")
    with serving(nass, authority.issue_cert(*hosts)) as address:
        names.update(dict.fromkeys(hosts, int(address.rsplit(":", 1)[1])))
        yield nass


@pytest.mark.parametrize(
    ("page", "host"),
    [
        ("https://www.nass.usda.gov/old", "data.nass.usda.gov"),
        ("https://data.nass.usda.gov/old", "nass.usda.gov"),
    ],
)
def test_a_page_that_has_moved_to_another_host_of_the_publisher_is_followed(
    sister: Nass, tmp_path: Path, page: str, host: str
) -> None:
    sister.put(2019, b"nineteen")
    sister.put(2020, b"twenty")
    sister.moved["/old"] = f"https://{host}/Release/index.php"
    sister.moved["/a/2020_30m_cdls.zip"] = "https://data.nass.usda.gov/Release/datasets/2020_30m_cdls.zip"
    sister.page = """<a href="datasets/2019_30m_cdls.zip">2019</a>
        <a href="https://evilnass.usda.gov/2020_30m_cdls.zip">2020</a>
        <a href="https://www.nass.usda.gov/a/2020_30m_cdls.zip">2020</a>"""
    releases = sister.releases(tmp_path, index=page)
    found = releases.releases()
    assert [(one.year, one.location, one.size) for one in found] == [
        (2019, f"https://{host}/Release/datasets/2019_30m_cdls.zip", 8),
        (2020, "https://www.nass.usda.gov/a/2020_30m_cdls.zip", 6),
    ]
    for one, content in zip(found, (b"nineteen", b"twenty"), strict=True):
        with releases.archive(one, lambda _: None) as archive:
            assert archive.read_bytes() == content


@pytest.mark.parametrize(
    "address",
    [
        "https://evilnass.usda.gov/",
        "https://nass.usda.gov.example/",
        "https://usda.gov/",
        "http://data.nass.usda.gov/",
        "http://localhost/",
        "https://mirror.example/",
    ],
)
def test_other_hosts_and_no_tls_are_refused_by_name(nass: Nass, tmp_path: Path, address: str) -> None:
    nass.put(2019, b"nineteen")
    name = "2019_30m_cdls.zip"
    nass.moved["/old"] = nass.moved[f"/Release/datasets/{name}"] = f"{address}{name}"
    host = re.escape(address.split("/")[2].rpartition("@")[2].lower())
    told = (
        rf"redirects to \w+://{host}(:80)?, which is not followed: .*nass\.usda\.gov.*CROP_ASSETS_CDL_HOSTS"
    )
    with pytest.raises(RefusedError, match=told):
        nass.releases(tmp_path, index=f"{nass.address}/old").releases()
    with pytest.raises(RefusedError, match=told):
        nass.releases(tmp_path).release(2019)
    nass.page = f'<a href="{address}{name}">2019</a>'
    with pytest.raises(
        IntegrityError, match=r"links to .*2019_30m_cdls\.zip, which is not fetched: releases come"
    ):
        nass.releases(tmp_path).releases()


def test_a_year_that_is_listed_on_another_host_alone_is_named(nass: Nass, tmp_path: Path) -> None:
    nass.put(2021, b"twenty-one")
    elsewhere = "https://mirror.example/2023_30m_cdls.zip"
    nass.page = f'''<a href="datasets/2021_30m_cdls.zip">2021</a> <a href="{elsewhere}">2023</a>
        <a href="https://mirror.example/2021_30m_cdls.zip">2021</a>'''
    releases, said = nass.releases(tmp_path), list[str]()
    assert [one.year for one in releases.releases(said.append)] == [2021]
    told = rf"links to {elsewhere}, which is not fetched: .*CROP_ASSETS_CDL_HOSTS"
    (line,) = said
    assert re.search(told, line)
    with pytest.raises(IntegrityError, match=told):
        releases.release(2023)


def test_another_host_is_followed_where_it_is_configured(sister: Nass, tmp_path: Path) -> None:
    sister.put(2019, b"nineteen")
    sister.moved["/old"] = "https://mirror.example/Release/index.php"
    index = "https://www.nass.usda.gov/old"
    with pytest.raises(RefusedError, match=r"redirects to https://mirror\.example, which"):
        sister.releases(tmp_path, index=index).releases()
    (found,) = sister.releases(tmp_path, index=index, hosts=["Mirror.example"]).releases()
    assert found.location == "https://mirror.example/Release/datasets/2019_30m_cdls.zip"
