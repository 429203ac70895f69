"""Excerpts of servers' error messages and web pages: short, on one line, and without secrets."""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from resources.addresses import AddressError, read
from resources.plain_text import plain_text

MAX_BYTES = 16 << 10
"""Bytes of a response that are read for its message."""
_MAX_WORDS = 300
_MAX_LINK = 400
_MAX_DEPTH = 4

_LINK_KEYS = ("resolution_url", "resolutionurl", "help_url", "url", "documentation_url", "type")
_WORD_KEYS: tuple[str, ...] = ("error_description", "message", "msg", "error", "errors", "detail", "details")
_WORD_KEYS += ("description", "title", "reason", "fault", "faultstring", "code")
# none of these backtracks without limit, whatever the text
_XML_WORDS = re.compile(
    r"<(?:\w{1,40}:)?(message|code|error|detail|faultstring|reason)\b[^>]{0,400}>([^<]+)<", re.I
)
_JSON_WORDS = re.compile(r'"(\w+)"\s*:\s*("(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")')
_TITLE = re.compile(r"<title[^>]{0,400}>(.{0,1000}?)</title", re.I | re.S)
_PAGE = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)
_NOT_SHOWN = re.compile(r"<(script|style|head)\b.*?(?:</\1|\Z)|<[^>]*(?:>|\Z)", re.I | re.S)

_URL = re.compile(r"(?<![\w+.-])[\w+.-]*://[^\s\"'<>]+")
_NAMED = r"authorization|bearer|credentials?|pass(?:word|wd)?|secret|signature|sig|token|api[_-]?key|access[_-]?key"
_SECRETS = (
    re.compile(
        rf"((?:{_NAMED})[\w-]{{0,60}}[\"']?\s{{0,9}}[=:]\s*)(?:(?:bearer|basic)\s+)?[\"']?[^\s\"',;&)]+", re.I
    ),
    re.compile(r"\b(bearer\s+|basic\s+(?=[\w+/-]*[\d=]))[\w.~+/=-]{8,}", re.I),
    # JSON web tokens, and AWS access key ids
    re.compile(r"()\beyJ[\w-]{4,}(?:\.[\w-]+)*"),
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{8,}"),
)
_SECRET_PARAMETER = re.compile(rf"{_NAMED}|x-amz|key|code\Z|policy|session", re.I)


def server_words(data: bytes, secrets: tuple[str, ...] = ()) -> str:
    """The message in the body of an error (JSON, XML, HTML or text) on one line of at most 300 characters, with its
    https link, if any; "" if there is no message, as in a binary body.

    Leaves out `secrets` and what looks like a token or password.
    """
    text = data[:MAX_BYTES].decode(errors="replace")
    if text.count("\0") or text.count("�") > len(text) // 20:
        return ""
    link = ""
    if text.lstrip()[:1] in ("{", "["):
        said, link = _of_json(text)
    elif _PAGE.match(text):
        said = _title(text) or _NOT_SHOWN.sub(" ", text)
    elif text.lstrip().startswith("<"):
        said = "; ".join(value for _, value in _XML_WORDS.findall(text)) or _NOT_SHOWN.sub(" ", text)
        said = html.unescape(said)
    else:
        said = text
    said = _short(redacted(said, secrets), _MAX_WORDS)
    link = redacted(link, secrets)
    return " ".join(filter(None, (said, f"({link})" if link and link not in said else "")))


def document(data: bytes, kind: str = "") -> str:
    """Describe, for an error, a body that came instead of a file: a web page, or a message with its text. "" unless it
    begins like HTML, XML or JSON. `kind` is its Content-Type, if known.
    """
    text = data[:MAX_BYTES].decode(errors="replace")
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if _PAGE.match(text.lstrip("\ufeff")) or ("html" in kind.lower() and start in ("<", "")):
        title = _short(redacted(_title(text)), 120)
        return "a web page" + (f' ("{title}")' if title else "")
    if start == "<" or (start in ("{", "[") and "�" not in text):
        return f"a message ({server_words(data) or 'without words'})"
    return ""


def redacted(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The text without what looks like a token, a password or a signature, and without links other than https."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    text = _URL.sub(lambda match: _safe_link(match[0]), text)
    for pattern in _SECRETS:
        text = pattern.sub(r"\1…", text)
    return text


def _safe_link(link: str) -> str:
    """An https link without parameters that may be secret; "…" for any other link."""
    try:
        address = read(link)
    except AddressError:
        return "…"
    if address.scheme != "https" or len(link) > _MAX_LINK:
        return "…"
    kept = [
        part for part in address.query.split("&") if part and not _SECRET_PARAMETER.search(part.split("=")[0])
    ]
    return address.url.split("#")[0].split("?")[0] + ("?" if kept else "") + "&".join(kept)


def _title(page: str) -> str:
    found = _TITLE.search(page)
    return html.unescape(found[1]) if found else ""


def _of_json(text: str) -> tuple[str, str]:
    try:
        found = list(_pairs(json.loads(text), _MAX_DEPTH))
    except (ValueError, RecursionError):
        # JSON that was cut at the limit
        found = [(key.lower(), json.loads(value, strict=False)) for key, value in _JSON_WORDS.findall(text)]
        if not found:
            return text, ""
    said: list[str] = []
    for wanted in _WORD_KEYS:
        for key, value in found:
            if key == wanted and value.strip() and not any(value in other for other in said):
                said.append(value)
    links = [
        value for name in _LINK_KEYS for key, value in found if key == name and value.startswith("https://")
    ]
    return "; ".join(said[:3]), links[0] if links else ""


def _pairs(value: Any, depth: int, key: str = "message") -> Iterator[tuple[str, str]]:
    """The texts in a JSON value, each with its key, or the key of its list."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping) and depth:
        for name, inner in value.items():
            yield from _pairs(inner, depth - 1, str(name).lower())
    elif isinstance(value, list) and depth:
        for inner in value[:5]:
            yield from _pairs(inner, depth - 1, key)


def _short(text: str, most: int) -> str:
    """The text on one line, cut to `most` characters."""
    line = " ".join(text.split())
    return plain_text(line if len(line) <= most else f"{line[: most - 1]}…", most)
