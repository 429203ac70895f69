"""Makes text from outside safe for messages, metadata and logs."""

import re
import shlex
from pathlib import Path

MAX_MESSAGE = 4000
"""Maximum characters of a message: Dagster keeps each in its event log, and shows it."""
_MAX_FILE = 1000
_ADDRESS = re.compile(r"((?:[a-z][a-z0-9+.-]*://|www\.|mailto:|[\w.+-]+@)[^\s`]+)", re.I)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~])")


def plain_text(text: str, max_length: int = MAX_MESSAGE) -> str:
    r"""The text on one line, with control characters escaped (\n, \x1b, \u202e). Of more than `max_length` characters,
    the middle is left out: messages begin with the problem and end with what to do.
    """
    short = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _cut(text, max_length))
    return _cut(short, max_length)


def markdown_text(text: str, max_length: int = MAX_MESSAGE) -> str:
    """The text escaped for Markdown, so that it cannot become links, images, HTML or columns of a table. Addresses
    become code, because readers of Markdown make links of them.
    """
    parts = _ADDRESS.split(plain_text(" ".join(text.split()), max_length))
    for number, part in enumerate(parts):
        if number % 2:
            # in code only the separator of table cells is escaped
            parts[number] = f"`{part.replace('|', '%7C')}`"
        else:
            parts[number] = _MARKDOWN.sub(r"\\\1", part)
    return "".join(parts)


def shell_file(path: str | Path) -> str:
    """A file's name for a shell command in a message: quoted as one argument, and not taken for an option.

    "FILE" replaces a name that a message could not show unchanged.
    """
    name = str(path)
    if not name.isprintable() or len(name) > _MAX_FILE:
        return "FILE"
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _cut(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    left_out = f"…({len(text):,} characters)…"
    head = (max_length - len(left_out)) * 2 // 3
    return f"{text[:head]}{left_out}{text[head + len(left_out) - max_length :]}"
