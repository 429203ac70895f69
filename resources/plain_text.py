"""How text from outside stands in messages, metadata and logs, whatever it holds."""

import shlex
from pathlib import Path

MAX_MESSAGE = 4000
"""The most characters of a message: Dagster keeps each in its event log, and shows it."""
_MAX_FILE = 1000


def plain_text(text: str, most: int = MAX_MESSAGE) -> str:
    r"""The text as a message shows it: on one line, with control characters written out (\n, \x1b, \u202e), and of more
    than `most` characters the beginning and the end, where what is wrong and what to do stand.
    """
    short = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _cut(text, most))
    return _cut(short, most)


def shell_file(path: str | Path) -> str:
    """A file's name as a word of a command that a message gives to be pasted: one argument, and no option.

    "FILE" stands for a name that a message could not show as it is.
    """
    name = str(path)
    if not name.isprintable() or len(name) > _MAX_FILE:
        return "FILE"
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    left_out = f"…({len(text):,} characters)…"
    head = (most - len(left_out)) * 2 // 3
    return f"{text[:head]}{left_out}{text[head + len(left_out) - most :]}"
