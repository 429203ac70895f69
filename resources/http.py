"""HTTP as every resource here speaks it: bounded retries, bounded answers, known hosts only.

Belongs here: sessions, retry rules and size limits. Does not: any service's protocol.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError, UnavailableError

RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
_PIECE = 1 << 20


def retry_rule(attempts: int) -> Retry:
    """Retries with exponential backoff and jitter; Retry-After is honoured up to two minutes."""
    return Retry(
        total=attempts - 1,
        backoff_factor=0.5,
        backoff_max=30,
        backoff_jitter=0.5,
        retry_after_max=120,
        status_forcelist=RETRIED_STATUSES,
        allowed_methods=None,
        raise_on_status=False,
    )


def new_session(attempts: int) -> requests.Session:
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry_rule(attempts)))
    return session


def require_host(url: str, hosts: Collection[str]) -> None:
    """Raise IntegrityError for a URL that is not http(s) or leads to a host that is not configured."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise IntegrityError(f"{url} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or parts.hostname not in hosts:
        raise IntegrityError(
            f"{url} leads to {parts.scheme}://{parts.hostname}, which is not among the configured hosts "
            f"({', '.join(sorted(hosts))})"
        )


def get_bytes(session: requests.Session, url: str, timeout: float, max_bytes: int) -> bytes:
    """The body of a GET, refused above `max_bytes`. Raises NotFoundError, UnavailableError, IntegrityError."""
    with _answer(session, url, timeout) as answer:
        pieces, size = [], 0
        for piece in answer.iter_content(_PIECE):
            size += len(piece)
            if size > max_bytes:
                raise IntegrityError(f"{url} answered more than {max_bytes:,} bytes")
            pieces.append(piece)
        return b"".join(pieces)


def get_file(
    session: requests.Session,
    url: str,
    timeout: float,
    max_bytes: int,
    destination: Path,
    auth: Callable[[requests.PreparedRequest], requests.PreparedRequest] | None = None,
) -> int:
    """Stream a GET into a local file; returns its size in bytes.

    Raises IntegrityError above `max_bytes` or where fewer bytes come than Content-Length announced.
    """
    with _answer(session, url, timeout, auth) as answer, destination.open("wb") as file:
        size = 0
        for piece in answer.iter_content(_PIECE):
            size += len(piece)
            if size > max_bytes:
                raise IntegrityError(f"{url} answered more than {max_bytes:,} bytes")
            file.write(piece)
        return size


@contextlib.contextmanager
def _answer(
    session: requests.Session,
    url: str,
    timeout: float,
    auth: Callable[[requests.PreparedRequest], requests.PreparedRequest] | None = None,
) -> Iterator[requests.Response]:
    try:
        with session.get(url, timeout=timeout, stream=True, auth=auth) as answer:
            if answer.status_code in (404, 410):
                raise NotFoundError(f"{url} answered {answer.status_code}: there is no such thing")
            if answer.status_code in (401, 403):
                raise ResourceError(
                    f"{url} answered {answer.status_code}: not allowed with these credentials"
                )
            if answer.status_code != 200:
                raise UnavailableError(f"{url} answered {answer.status_code}")
            yield answer
    except requests.exceptions.ChunkedEncodingError as error:
        raise CutShortError(f"{url} was cut short") from error
    except requests.RequestException as error:
        raise UnavailableError(f"{url} could not be read: {type(error).__name__}") from error
