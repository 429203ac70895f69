import errno
import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from resources import mirror as mirror_module
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.ipfs.unixfs import file_cid, matches_cid
from resources.mirror import BandMirror
from resources.resume import PartialFiles
from resources.sources import FileRequest, Memory, Sources

SCENE = "HLS.S30.T14SMG.2022112T172221.v2.0"
FILE = f"{SCENE}.B02.tif"
DATA = hashlib.shake_256(b"a band").digest(600_000)
UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mirror" / SCENE).mkdir(parents=True)
    return tmp_path / "mirror"


@pytest.fixture(params=["by scene", "side by side"])
def file(request: pytest.FixtureRequest, folder: Path) -> Path:
    path = folder / SCENE / FILE if request.param == "by scene" else folder / FILE
    path.write_bytes(DATA)
    return path


def fetch(folder: Path, out: Path, partials: PartialFiles, cid: str = "", most: int = 1 << 20) -> bool:
    wanted = FileRequest(f"{SCENE}/{FILE}", cid, "", most)
    return BandMirror(folder=str(folder)).fetch(wanted, out, partials, lambda count: None)


def test_a_file_is_found_by_its_scene_or_beside_others(
    folder: Path, file: Path, out: Path, partials: PartialFiles
) -> None:
    assert fetch(folder, out, partials) is False, "there is no CID to verify it by"
    assert out.read_bytes() == DATA
    assert file.read_bytes() == DATA
    assert not out.samefile(file), "what is done to the one does not change the other"


@pytest.mark.parametrize("version", [0, 1])
def test_a_file_with_its_cid_is_verified(
    folder: Path, file: Path, out: Path, partials: PartialFiles, version: Literal[0, 1]
) -> None:
    assert fetch(folder, out, partials, file_cid(file, version=version)) is True
    assert out.read_bytes() == DATA


def test_a_file_of_another_content_is_refused(
    folder: Path, file: Path, out: Path, partials: PartialFiles
) -> None:
    cid = file_cid(file)
    file.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(IntegrityError, match=f"{FILE} does not match {cid}"):
        fetch(folder, out, partials, cid)


def test_the_folder_of_the_scene_comes_first(folder: Path, out: Path, partials: PartialFiles) -> None:
    (folder / SCENE / FILE).write_bytes(b"of the scene")
    (folder / FILE).write_bytes(b"beside")
    fetch(folder, out, partials)
    assert out.read_bytes() == b"of the scene"


def test_a_file_that_is_not_there_is_not_found(folder: Path, out: Path, partials: PartialFiles) -> None:
    (folder / FILE).mkdir()
    for place in (folder, folder / "nowhere"):
        with pytest.raises(NotFoundError, match=f"has no {FILE}"):
            fetch(place, out, partials)


def test_a_file_larger_than_allowed_is_refused(
    folder: Path, file: Path, out: Path, partials: PartialFiles
) -> None:
    assert fetch(folder, out, partials, most=len(DATA)) is False
    with pytest.raises(IntegrityError, match=f"{FILE} is larger than 599,999 bytes"):
        fetch(folder, out, partials, most=len(DATA) - 1)


def test_without_a_folder_there_is_no_mirror() -> None:
    wanted = FileRequest(f"{SCENE}/{FILE}", UNKNOWN, "https://example.org/a", 1)
    assert not BandMirror().offers(wanted)
    mirror = BandMirror(folder="/bands")
    assert mirror.offers(wanted)
    assert (mirror.name, mirror.host, mirror.by_cid) == ("mirror", "", False)


def test_what_is_verified_is_what_was_copied(
    folder: Path, file: Path, out: Path, partials: PartialFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = file_cid(file)

    def checked_and_replaced(path: Path, cid: str) -> bool:
        found = matches_cid(path, cid)
        file.write_bytes(b"another")
        return found

    monkeypatch.setattr(mirror_module, "matches_cid", checked_and_replaced)
    try:
        verified = fetch(folder, out, partials, cid)
    except ResourceError:
        return
    assert not verified or matches_cid(out, cid)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (shutil, "copyfileobj"),
        (Path, "is_file"),
    ],
)
def test_a_folder_that_cannot_be_read_is_passed_by(
    folder: Path,
    file: Path,
    out: Path,
    partials: PartialFiles,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
) -> None:
    def refused(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(place, name, refused)
    sources = Sources([BandMirror(folder=str(folder))], 1, Memory(4))
    with pytest.raises(ResourceError, match="Permission denied"):
        sources.obtain(
            FileRequest(f"{SCENE}/{FILE}", "", "", 1 << 20), out, partials, lambda path, got: None, print
        )


def test_a_disk_that_is_full_ends_it(
    folder: Path, file: Path, out: Path, partials: PartialFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(folder, out, partials)
