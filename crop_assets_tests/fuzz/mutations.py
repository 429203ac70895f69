"""Spoiling sound inputs: bytes anywhere, and the values of a JSON document."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_TOKENS = [
    *(
        b"\0",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\x80",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\r\n",
        b"\n",
        b" ",
        b"\t",
    ),
    *(
        b"-1",
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"9" * 400,
        b"0x10",
        b"1_0",
        b"null",
        b"true",
        b"{}",
        b"[]",
        b'""',
    ),
    *(
        b"[" * 3_000,
        b"{" * 200,
        b'"\\ud800"',
        b"&amp;",
        b"&x;",
        b"<",
        b"../",
        b"\\",
        b"@",
        b"://",
        b"%00",
        b"#",
        b"?",
    ),
    *(
        b"!!python/object:os.system",
        b"&a [*a]",
        b"*a",
        b"? ",
        b"- ",
        b": ",
        b"2022-13-45",
        b"\xe2\x80\xae",
        b"\xd9\xa1",
    ),
]
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, -1e308, float("nan"), float("inf"), 10**400, 2**63, -(2**63) - 1),
    *(
        "",
        "x" * 5_000,
        "\ud800",
        "\0",
        "9" * 5_000,
        "1e999",
        "NaN",
        "../../x",
        "http://[",
        "١",
        "a\nb",
        " ",
        "s3://x",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [[[1e9, 1e9]]],
        {"id": "x"},
        {"type": "name"},
        [{"rel": "next"}],
        [{"rel": "via"}],
    ),
]


def mutations(seed: bytes, count: int, luck: random.Random, is_json: bool) -> Iterator[bytes]:
    """So many spoilt copies of an input, each in one to four places."""
    for _ in range(count):
        yield _spoilt_values(seed, luck) if is_json and luck.random() < 0.7 else _spoilt_bytes(seed, luck)


def _spoilt_bytes(seed: bytes, luck: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(luck.randint(1, 4)):
        at = luck.randrange(len(data) + 1)
        end = min(len(data), at + luck.choice([1, 1, 2, 4, 8, 64, 500]))
        match luck.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << luck.randrange(8)
            case 1 if at < len(data):
                data[at] = luck.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * luck.choice([1, 2, 50])
            case 4:
                data[at:end] = luck.choice(_TOKENS)
            case 5:
                data[at:at] = luck.choice(_TOKENS)
            case _ if luck.random() < 0.2:
                del data[at:]
    return bytes(data)


def _spoilt_values(seed: bytes, luck: random.Random) -> bytes:
    document = json.loads(seed)
    for _ in range(luck.randint(1, 4)):
        places = list(_places(document))
        if not places:
            break
        holder, key = luck.choice(places)
        match luck.randrange(7):
            case 0:
                del holder[key]
            case 6 if isinstance(holder, list):
                other, there = luck.choice(places)
                if there in other if isinstance(other, dict) else there < len(other):
                    holder.insert(key, copy.deepcopy(other[there]))
            case 1 if isinstance(holder, dict):
                holder[luck.choice(["", "id", "type", "crs", key.upper()])] = holder.pop(key)
            case 2:
                holder[key] = [copy.deepcopy(holder[key])]
            case 3:
                other, there = luck.choice(places)
                if there in other if isinstance(other, dict) else there < len(other):
                    holder[key] = copy.deepcopy(other[there])
            case _:
                holder[key] = copy.deepcopy(luck.choice(_VALUES))
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a document: what holds it, and by which key or index."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(value[key])
