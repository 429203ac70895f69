"""Suggests what an unknown name was meant to be."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], prefix: str = "") -> str:
    """`" (did you mean 'chips'?)"` for the known name that is most similar to `name`, or "" if none is similar.

    `prefix` is put in front of the suggestion.
    """
    plain = {_plain(one): one for one in known}
    wanted = _plain(str(name))
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.6)
    near = near or [one for one in plain if len(wanted) > 2 and one.startswith(wanted)]
    return f" (did you mean {prefix + plain[near[0]]!r}?)" if near else ""


def with_suggestions(names: Iterable[str], known: Iterable[str]) -> str:
    """Unknown names with suggestions, comma-separated."""
    known = list(known)
    return ", ".join(f"{name}{did_you_mean(name, known)}" for name in names)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
