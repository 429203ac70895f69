"""Makes text from outside safe for messages, metadata and logs."""

import shlex
from pathlib import Path

MAX_MESSAGE = 4000
"""Maximum characters of a message: Dagster keeps each in its event log, and shows it."""
_MAX_FILE = 1000


def plain_text(text: str, max_length: int = MAX_MESSAGE) -> str:
    r"""The text on one line, with control characters escaped (\n, \x1b, \u202e). Of more than `max_length` characters,
    the middle is left out: messages begin with the problem and end with what to do.
    """
    short = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _cut(text, max_length))
    return _cut(short, max_length)


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
