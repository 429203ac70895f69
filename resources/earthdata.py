"""LP DAAC downloads with an Earthdata login.

Belongs here: authorised HTTPS downloads. Does not: which files are wanted (`crop_assets.bands`).
"""

import threading
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import requests
import tenacity
from pydantic import Field, PrivateAttr

from resources.errors import CutShortError, IntegrityError, ResourceError
from resources.http import get_file, new_session, require_host

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class LpDaac(dg.ConfigurableResource):  # type: ignore[type-arg]
    """HTTPS downloads from LP DAAC, with a bearer token or, without one, the login in ~/.netrc.

    The token goes to LP DAAC alone: requests drops it on the redirect to presigned storage.
    """

    token: str = Field(
        default="", description="Earthdata Login bearer token; set it as EARTHDATA_TOKEN.", repr=False
    )
    hosts: list[str] = Field(
        default=["data.lpdaac.earthdatacloud.nasa.gov"], description="Hosts that files are fetched from."
    )
    timeout_seconds: float = Field(default=60, description="Most seconds to wait for the next bytes.")
    attempts: int = Field(default=5, description="Tries of a request that fails with 408, 429 or 5xx.")
    _local: threading.local = PrivateAttr(default_factory=threading.local)

    def fetch(self, url: str, destination: Path, max_bytes: int) -> int:
        """Download `url` to a local path; returns its bytes.

        Raises IntegrityError for another host, a link without TLS (but to loopback), too many or too few bytes;
        ResourceError that says how to log in on 401 and 403; NotFoundError; UnavailableError.
        """
        require_host(url, self.hosts)
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise IntegrityError(
                f"{url} is not https, and a login that goes with it could be read on its way"
            )
        token = self.token.strip()
        # http.client would refuse it as well, with the token in its words
        if not (token.isascii() and token.isprintable()):
            raise ResourceError("EARTHDATA_TOKEN has characters that no token has; copy it again")
        if not hasattr(self._local, "session"):
            self._local.session = new_session(self.attempts)
        try:
            for attempt in tenacity.Retrying(
                stop=tenacity.stop_after_attempt(self.attempts),
                wait=tenacity.wait_exponential(multiplier=0.2, max=20) + tenacity.wait_random(0, 0.2),
                retry=tenacity.retry_if_exception_type(CutShortError),
                reraise=True,
            ):
                with attempt:
                    size = get_file(
                        self._local.session,
                        url,
                        self.timeout_seconds,
                        max_bytes,
                        destination,
                        _Bearer(token) if token else None,
                    )
            return size
        except ResourceError as error:
            if "not allowed" in str(error):
                raise ResourceError(
                    f"{error}; set EARTHDATA_TOKEN to a token from urs.earthdata.nasa.gov, "
                    "or put that host's login into ~/.netrc"
                ) from None
            raise


class _Bearer(requests.auth.AuthBase):
    """An auth object, because a login in ~/.netrc would replace a plain Authorization header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
