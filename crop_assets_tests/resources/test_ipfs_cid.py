import base64
import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import IntegrityError, UnsafeNameError
from resources.ipfs import multibase
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


SPELLINGS = {
    "base2": (
        "000000001011100000001001000100000001111111111100101111110000110010011111010010001110100111"
        "100100010100001111100011010000101110000111001000100110001001001011110100001000011001011110"
        "111001100100110011100100100110010011011111101011101011110100011110110101110110010011000011"
        "0110110011111001110"
    ),
    "base8": (
        "7002700221003777137414476443517105037064134162114222750206275631147111446772727507553544606663716"
    ),
    "base10": "92793123836805071367096806262790100703952868003417917730184372629723850150895496685518",
    "base32upper": "BAFYBEIB77F7BSPUR2PEKD4NBODSEYSL2CDF5ZSM4SMTP25PI625SMG3HZY",
    "base32padupper": "CAFYBEIB77F7BSPUR2PEKD4NBODSEYSL2CDF5ZSM4SMTP25PI625SMG3HZY======",
    "base16upper": "F017012203FF97E193E91D3C8A1F1A170E44C497A10CBDCC99C9326FD75E8F6BB261B67CE",
    "base36upper": "K2JMTXSYIG57O07NLLBNHB8RGT21XH3UU5R6EP6ZTXDICK3YHKG4IGGE",
    "base64pad": "MAXASID/5fhk+kdPIofGhcORMSXoQy9zJnJMm/XXo9rsmG2fO",
    "base32hexpadupper": "T05O1481VV5V1IFKHQF4A3SD1E3I4OIBQ235TPICSICJFQTF8UQTIC6R7PO======",
    "base64urlpad": "UAXASID_5fhk-kdPIofGhcORMSXoQy9zJnJMm_XXo9rsmG2fO",
    "base32hexupper": "V05O1481VV5V1IFKHQF4A3SD1E3I4OIBQ235TPICSICJFQTF8UQTIC6R7PO",
    "base58flickr": "ZCJ7vyJCq7pnrJpXYXxmUz5DkZ5eSHWjPVsdtRxmkjvi331Du",
    "base32": "bafybeib77f7bspur2pekd4nbodseysl2cdf5zsm4smtp25pi625smg3hzy",
    "base32pad": "cafybeib77f7bspur2pekd4nbodseysl2cdf5zsm4smtp25pi625smg3hzy======",
    "base16": "f017012203ff97e193e91d3c8a1f1a170e44c497a10cbdcc99c9326fd75e8f6bb261b67ce",
    "base32z": "hyfabreb99f9b1xwt4xrkdhpbqd1ra1m4ndf731ch1cux47xe6471cg583a",
    "base36": "k2jmtxsyig57o07nllbnhb8rgt21xh3uu5r6ep6ztxdick3yhkg4igge",
    "base64": "mAXASID/5fhk+kdPIofGhcORMSXoQy9zJnJMm/XXo9rsmG2fO",
    "proquint": (
        "pro-bajub-damob-guzun-lumin-gupid-tazam-palud-pajub-vidas-hojup-dagar-tugan-nufig-firut-li"
        "lom-zipur-fimir-kizav"
    ),
    "base32hexpad": "t05o1481vv5v1ifkhqf4a3sd1e3i4oibq235tpicsicjfqtf8uqtic6r7po======",
    "base64url": "uAXASID_5fhk-kdPIofGhcORMSXoQy9zJnJMm_XXo9rsmG2fO",
    "base32hex": "v05o1481vv5v1ifkhqf4a3sd1e3i4oibq235tpicsicjfqtf8uqtic6r7po",
    "base58btc": "zdj7WZjdR7QNSjQxyxYMua5eLz5EsiwKpvTDUrYMLKWJ331eV",
}
"""V1 in all bases that its bytes can be written in."""


@pytest.mark.parametrize("base", SPELLINGS)
def test_any_multibase_spells_the_same_cid(base: str) -> None:
    assert Cid.parse(SPELLINGS[base]) == Cid.parse(V1)


@pytest.mark.parametrize("base", SPELLINGS)
def test_other_spellings_in_a_base_are_refused(base: str) -> None:
    text = SPELLINGS[base]
    zeros = {"9": "0", "k": "0", "K": "0", "z": "1", "Z": "1"}
    others = {text[0] + text[1:].swapcase(), text + "=", text.rstrip("=") + "==", f"{text} ", text + "\n"}
    others |= {text.rstrip("="), text[:-1], text[0] + zeros.get(text[0], "") + text[1:]}
    for other in others - {text}:
        with pytest.raises(IntegrityError):
            Cid.parse(other)


@pytest.mark.parametrize(
    "text",
    [
        "\0\x01U\0\x06hello\n",
        "7002524000146414533066157024=====",
        "MAVUABmhlbGxvCg==",
        "T05AG01J8CLM6OROA",
        "hyfkoybuecisga5ak",
        "pro-bajij-babak-kodoj-kudos-kusap",
        "z5LkPo4pdsXsBo",
    ],
)
def test_an_identity_cid_has_spellings_too(text: str) -> None:
    assert Cid.parse(text) == Cid.parse("bafkqabtimvwgy3yk")


@given(st.binary(min_size=1, max_size=80))
def test_multibases_are_those_of_the_standard_library(data: bytes) -> None:
    spellings = {
        "f": data.hex(),
        "C": base64.b32encode(data).decode(),
        "T": base64.b32hexencode(data).decode(),
        "M": base64.b64encode(data).decode(),
        "U": base64.urlsafe_b64encode(data).decode(),
        "0": "".join(f"{byte:08b}" for byte in data),
        "9": "0" * (len(data) - len(data.lstrip(b"\0"))) + str(int.from_bytes(data, "big")).lstrip("0"),
    }
    for prefix, text in spellings.items():
        assert multibase.decode(prefix + text) == data


@given(st.binary(max_size=80))
def test_base58_is_read_as_it_was_written(data: bytes) -> None:
    assert multibase.decode("z" + multibase.encode_base58(data)) == data


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
