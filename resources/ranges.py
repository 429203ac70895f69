"""Ranges of a file from an HTTP server, bound to one version of it (RFC 9110, 13.1.5 and 14)."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import requests

from resources.addresses import shown
from resources.errors import (
    CutShortError,
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    RefusedError,
)
from resources.http import (
    CONNECT_SECONDS,
    Auth,
    body,
    check_status,
    first_bytes,
    require_no_page,
    strong_tag,
    translate_errors,
)
from resources.ipfs.leaves import Tree
from resources.pace import max_seconds
from resources.parts import (
    MAX_RANGE_BYTES,
    ChangedError,
    NotInPartsError,
    Parts,
    Range,
    Turn,
    in_turns,
    merged,
)

_MIN_GAP, _MAX_GAP = 64 << 10, 256 << 10
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")


@dataclass(frozen=True)
class Piece:
    """A range of a file from its start on, and what the server said: the file's size, and its strong ETag or ""."""

    start: int
    data: bytes
    size: int
    tag: str
    url: str
    """Where it can be had without a login, after redirects to another host: it may be signed; else what was asked."""


def get_range(
    session: requests.Session,
    url: str,
    wanted: Range,
    timeout: float,
    auth: Auth | None = None,
    tag: str = "",
    shown_url: str = "",
) -> Piece:
    """One range of a file, up to its end if that comes earlier; of the version `tag`, if given.

    `shown_url` is the address for messages. Raises NotInPartsError if the server answers with the complete file,
    ChangedError if the file has changed, IntegrityError for another range than the one requested or
    more bytes than announced, CutShortError for fewer, and otherwise like `check_status` and `translate_errors`.
    """
    named = shown_url or url
    start, stop = wanted
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
    if tag:
        headers["If-Range"] = tag
    with (
        translate_errors(named),
        session.get(
            url, headers=headers, timeout=(min(CONNECT_SECONDS, timeout), timeout), stream=True, auth=auth
        ) as answer,
    ):
        if answer.status_code == 416 and tag:
            # the range was within the file before, so it is a shorter one now
            raise _changed(named)
        check_status(answer, named)
        if answer.status_code != 206:
            # a login page is no change of the file
            require_no_page(answer, first_bytes(answer), "a file", named)
            if tag and answer.headers.get("ETag") != tag:
                raise _changed(named)
            raise NotInPartsError(f"{shown(named)} sends no ranges")
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if not match:
            raise IntegrityError(f"{shown(named)} sent a range without saying which")
        first, last, size = map(int, match.groups())
        if first != start or last != min(stop, size) - 1 or last < first:
            raise IntegrityError(
                f"{shown(named)} answered with bytes {first:,} to {last:,} of {size:,} instead of {start:,} to "
                f"{stop - 1:,}"
            )
        found = strong_tag(answer)
        if tag and found not in ("", tag):
            raise _changed(named)
        count = last + 1 - first
        data = bytearray()
        for piece in body(answer, timeout, max_seconds(count)):
            data += piece
            if len(data) > count:
                raise IntegrityError(f"{shown(named)} sent more than {count:,} bytes of a range")
        if not start:
            require_no_page(answer, bytes(data[:1024]), "a file", named)
        if len(data) < count:
            raise CutShortError(f"{shown(named)} ended after {len(data):,} of {count:,} bytes of a range")
        # not where the login went along on the same host: it is wanted there
        moved = answer.history and "Authorization" not in answer.request.headers
        return Piece(start, bytes(data), size, found, answer.url if moved else url)


def _changed(url: str) -> ChangedError:
    return ChangedError(f"{shown(url)} has changed; it is fetched from its start next")


class HttpRanges:
    """The ranges of one file at a URL, as a `resources.parts.Client`.

    With `tree`, the tree of the file's CID, ranges are extended to whole leaves, each of which is checked. Without it,
    they are the requested ones, all of the version with the first one's ETag.
    """

    def __init__(
        self,
        url: str,
        parts: Parts,
        get: Callable[[str, Range, str], Piece],
        max_bytes: int,
        pool: Executor,
        turn: Turn,
        tree: Tree | None = None,
    ) -> None:
        """`get` sends one request, to a URL for a range of a version (or "")."""
        self.verified = tree is not None
        self._url, self._get = url, get
        self._parts, self._max_bytes = parts, max_bytes
        self._pool, self._turn = pool, turn
        self._tree = tree
        self._lock = threading.Lock()
        self._place = url
        self._gap = _MIN_GAP
        self._latency = 0.0
        if tree is not None:
            parts.begin(str(tree.root), tree.size, max_bytes)

    def bring(self, ranges: Sequence[Range]) -> None:
        if self._tree is not None:
            self._send(self._leaves(self._tree, ranges))
            return
        if not self._parts.size:
            # the first one says which version the others must be of
            self._send(ranges[:1])
            ranges = self._parts.missing(ranges)
        self._send(
            [
                (at, min(at + MAX_RANGE_BYTES, stop))
                for start, stop in self._parts.missing(merged(ranges, self._gap))
                for at in range(start, stop, MAX_RANGE_BYTES)
            ]
        )

    def _leaves(self, tree: Tree, ranges: Sequence[Range]) -> list[Range]:
        """The leaves of these ranges that are not here, joined where they follow each other."""
        leaves = {(leaf.start, leaf.stop) for one in ranges for leaf in tree.ends(*one)}
        missing = (leaf for leaf in leaves if self._parts.missing([leaf]))
        return merged(missing, most=MAX_RANGE_BYTES)

    def _send(self, ranges: Sequence[Range]) -> None:
        try:
            in_turns(self._pool, self._turn, [partial(self._bring, one) for one in ranges])
        except ChangedError:
            self._parts.forget()
            raise

    def _bring(self, wanted: Range) -> None:
        began = time.monotonic()
        tag, place = "" if self._tree else self._parts.version, self._place
        try:
            piece = self._get(place, wanted, tag)
        except (ForbiddenError, NotFoundError, RefusedError):
            if place == self._url:
                raise
            # the address that it redirected to may have expired
            piece = self._get(self._url, wanted, tag)
        self._time(time.monotonic() - began, len(piece.data))
        if self._tree is not None:
            self._keep_leaves(self._tree, piece)
        else:
            if not piece.tag:
                raise NotInPartsError(
                    f"{shown(self._url)} sends ranges without a strong ETag, which binds them"
                )
            if not tag:
                self._parts.begin(piece.tag, piece.size, self._max_bytes)
            elif piece.size != self._parts.size:
                raise ChangedError(
                    f"{shown(self._url)} has {piece.size:,} bytes, and had {self._parts.size:,}"
                )
            self._parts.add(piece.start, piece.data)
        self._place = piece.url

    def _keep_leaves(self, tree: Tree, piece: Piece) -> None:
        if piece.size != tree.size:
            raise IntegrityError(
                f"{shown(self._url)} has {piece.size:,} bytes, and the file of {tree.root} {tree.size:,}"
            )
        for leaf in tree.ends(piece.start, piece.start + len(piece.data)):
            data = piece.data[leaf.start - piece.start : leaf.stop - piece.start]
            if not leaf.holds(data):
                raise IntegrityError(
                    f"{shown(self._url)}: bytes {leaf.start:,} to {leaf.stop:,} are not {leaf.cid}"
                )
            self._parts.add(leaf.start, data)

    def _time(self, seconds: float, count: int) -> None:
        """Learn the gap that pays: as many bytes as come in the time that a request takes in itself."""
        with self._lock:
            if not self._latency:
                # of the head of the file, nearly all is latency
                self._latency = seconds
            elif seconds > self._latency:
                rate = count / (seconds - self._latency)
                self._gap = int(min(max(rate * self._latency / 2, _MIN_GAP), _MAX_GAP))
