import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import multibase

from resources.errors import IntegrityError, UnsafeNameError
from resources.ipfs.cid import Cid, cid_from_href

V0 = "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
V1 = "bafybeib77f7bspur2pekd4nbodseysl2cdf5zsm4smtp25pi625smg3hzy"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "real"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data {name} is not beside the project folder")
    return path


def test_version_0_is_dag_pb_by_sha2_256() -> None:
    cid = Cid.parse(V0)
    assert (cid.version, cid.codec, cid.hash_name, len(cid.digest)) == (0, "dag-pb", "sha2-256", 32)
    assert str(cid) == V0
    assert Cid.from_bytes(bytes(cid)) == cid


def test_version_1_says_its_codec() -> None:
    cid = Cid.parse(V1)
    assert (cid.version, cid.codec, cid.hash_name) == (1, "dag-pb", "sha2-256")
    assert str(cid) == V1
    assert Cid.parse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku").codec == "raw"


@pytest.mark.parametrize(
    "base", ["base16", "base32upper", "base32hex", "base36", "base58btc", "base64url", "base2"]
)
def test_any_multibase_spells_the_same_cid(base: str) -> None:
    assert Cid.parse(multibase.encode(bytes(Cid.parse(V1)), base)) == Cid.parse(V1)


def test_an_identity_cid_holds_its_block() -> None:
    cid = Cid.parse("bafkqabtimvwgy3yk")
    assert (cid.hash_name, cid.digest) == ("identity", b"hello\n")
    assert cid.matches(b"hello\n")
    assert not cid.matches(b"hello")
    assert Cid.parse("bafkqaaa").matches(b"")


def test_matches_only_the_block_that_was_hashed() -> None:
    cid = Cid.of(b"block", "raw")
    assert cid.digest == hashlib.sha256(b"block").digest()
    assert cid.matches(b"block")
    assert not cid.matches(b"Block")


def test_both_versions_can_name_one_block() -> None:
    old, new = Cid.of(b"block", "dag-pb", 0), Cid.of(b"block", "dag-pb", 1)
    assert old != new
    assert old.same_block(new)


def test_version_0_cannot_be_raw() -> None:
    with pytest.raises(ValueError, match="cannot have the codec raw"):
        Cid.of(b"", "raw", 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "z",
        "Q",
        "Qm",
        "hello",
        "fé",
        V1[:-1],
        V1 + "a",
        V1 + "====",
        V1[:-1] + "Y",
        V1.replace("y", "1", 1),
        V0[:-1],
        V0 + "o",
        "z" + V0,
        "f01551220",
        "f0155122000",
        "f01f001",
        "f0255" + "1220" + "00" * 32,
        "b" * 5000,
    ],
)
def test_a_malformed_cid_is_named(text: str) -> None:
    with pytest.raises(IntegrityError) as error:
        Cid.parse(text)
    assert repr(text[:200]) in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("f0155a0e40220" + "00" * 32, "hash 0xb220 cannot be verified"),
        ("f0155131400", "hash 0x13 cannot be verified"),
        ("f01711220" + "00" * 32, "codec 0x71"),
        ("f0155122100" + "00" * 32, "33 bytes instead of 32"),
        ("f0155008101" + "00" * 129, "longer than 128"),
    ],
)
def test_what_cannot_be_verified_is_refused(text: str, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        Cid.parse(text)


@given(
    st.text(max_size=80) | st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", max_size=80).map("b".__add__)
)
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(IntegrityError):
        Cid.parse(text)


@given(st.binary(max_size=60))
def test_bytes_are_a_cid_or_an_integrity_error(data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        assert bytes(Cid.from_bytes(data)) == data


@pytest.mark.parametrize(
    ("href", "path"),
    [
        (V1, ()),
        (f"ipfs://{V1}", ()),
        (f"IPFS://{V1}/", ()),
        (f"ipfs://ipfs/{V1}", ()),
        (f"/ipfs/{V1}", ()),
        (f"https://gateway.example/ipfs/{V1}/B03.tif", ("B03.tif",)),
        (f"ipfs://{V1}/a/B03.tif", ("a", "B03.tif")),
        (f"ipfs://{V1}/a%20b/B03.tif?format=raw", ("a b", "B03.tif")),
        (f"  ipfs://{V1}\n", ()),
        (f"ipfs://{V1} (B03)", ()),
        (f"ipfs://{V1}?filename=B03.tif", ()),
        (f"ipfs://{V1}#B03", ()),
    ],
)
def test_hrefs(href: str, path: tuple[str, ...]) -> None:
    assert cid_from_href(href) == (Cid.parse(V1), path)


@pytest.mark.parametrize("href", ["", "ipfs://", "s3://bucket/B03.tif", f"ipfs://{V1[:-1]}/B03.tif"])
def test_an_href_without_a_cid_is_named(href: str) -> None:
    with pytest.raises(IntegrityError) as error:
        cid_from_href(href)
    assert repr(href) in str(error.value)


@pytest.mark.parametrize("path", ["../x", "a/..", ".", "a%2Fb", "a%00"])
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UnsafeNameError):
        cid_from_href(f"ipfs://{V1}/{path}")


def test_the_231_published_cids() -> None:
    entries = json.loads(shared("tables/filename_to_cid_mapping.json").read_text())
    assert len(entries) == 231
    for entry in entries:
        cid = Cid.parse(entry["cid"])
        assert str(cid) == entry["cid"]
        assert cid.hash_name == "sha2-256"


def test_the_hrefs_of_the_easier_catalogue() -> None:
    shared("stac")
    hrefs = []
    for path in sorted(SHARED.glob("stac/LC09_*.json")):
        item = json.loads(path.read_text())
        hrefs += [
            asset["alternate"]["IPFS"]["href"] for asset in item["assets"].values() if "alternate" in asset
        ]
    assert len(hrefs) > 20
    for href in hrefs:
        cid, segments = cid_from_href(href)
        assert href == f"ipfs://{cid}"
        assert segments == ()
