"""LP DAAC downloads with an Earthdata login.

Belongs here: authorised HTTPS downloads. Does not: which files are wanted (`crop_assets.bands`).
"""

import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import requests
from pydantic import Field, PrivateAttr

from resources.errors import IntegrityError, ResourceError
from resources.http import WarySession, get_file, require_host
from resources.ipfs.unixfs import matches_cid
from resources.partials import Partials, move
from resources.sources import Wanted

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class LpDaac(dg.ConfigurableResource):  # type: ignore[type-arg]
    """HTTPS downloads from LP DAAC, with a bearer token or, without one, the login in ~/.netrc.

    The token goes to LP DAAC alone, not along to the storage that it redirects to.
    """

    token: str = Field(
        default="", description="Earthdata Login bearer token; set it as EARTHDATA_TOKEN.", repr=False
    )
    hosts: list[str] = Field(
        default=["data.lpdaac.earthdatacloud.nasa.gov"], description="Hosts that files are fetched from."
    )
    storage_hosts: list[str] = Field(
        default=["cloudfront.net", "amazonaws.com"],
        description="Hosts, with all below them, that redirects to presigned storage may lead to.",
    )
    login_host: str = Field(
        default="urs.earthdata.nasa.gov",
        description="Earthdata Login's host, by which ~/.netrc names the login.",
    )
    timeout_seconds: float = Field(default=60, description="Most seconds to wait for the next bytes.")
    _local: threading.local = PrivateAttr(default_factory=threading.local)
    _login: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _tokens: list[str] = PrivateAttr(default_factory=list)

    @property
    def name(self) -> str:
        return "LP DAAC"

    @property
    def host(self) -> str:
        return self.hosts[0] if self.hosts else ""

    @property
    def by_cid(self) -> bool:
        return False

    def offers(self, wanted: Wanted) -> bool:
        return bool(wanted.url)

    def fetch(
        self, wanted: Wanted, destination: Path, partials: Partials, progress: Callable[[int], None]
    ) -> bool:
        """Download the file at `wanted.url`; True where it has the CID, in a layout in common use.

        What broke off before is gone on with, where the server tells versions apart. Raises IntegrityError for
        another host, a link without TLS (but to loopback), too many or too few bytes; ResourceError that says how
        to log in on 401 and 403; NotFoundError; UnavailableError.
        """
        url = wanted.url
        require_host(url, self.hosts)
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise IntegrityError(
                f"{url} is not https, and a login that goes with it could be read on its way"
            )
        token = self._bearer()
        if not hasattr(self._local, "session"):
            self._local.session = WarySession(self._may_redirect)
        with partials.holding(url) as path:
            try:
                get_file(
                    self._local.session,
                    url,
                    self.timeout_seconds,
                    wanted.max_bytes,
                    path,
                    _Bearer(token) if token else None,
                    progress,
                )
            except ResourceError as error:
                if "not allowed" in str(error) or f"redirects to {self.login_host}" in str(error):
                    raise ResourceError(
                        f"{url}: {error}; set EARTHDATA_TOKEN to a token from {self.login_host}, "
                        "or put that host's login into ~/.netrc"
                    ) from None
                raise
            move(path, destination)
        return bool(wanted.cid) and matches_cid(destination, wanted.cid)

    def _may_redirect(self, url: str, target: str) -> bool:
        parts = urlsplit(target)
        host = parts.hostname or ""
        if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
            return False
        places = [*self.hosts, *self.storage_hosts]
        return "@" not in parts.netloc and any(
            host == place or host.endswith(f".{place}") for place in places
        )

    def _bearer(self) -> str:
        """The token as configured, or the one that Earthdata Login gives for the login in ~/.netrc, or ""."""
        token = self.token.strip()
        # http.client would refuse it as well, with the token in its words
        if not (token.isascii() and token.isprintable()):
            raise ResourceError("EARTHDATA_TOKEN has characters that no token has; copy it again")
        if token:
            return token
        with self._login:
            if not self._tokens:
                self._tokens.append(_netrc_token(self.login_host))
            return self._tokens[0]


def _netrc_token(host: str) -> str:
    """A bearer token for the login that netrc holds for Earthdata Login's host, or "" where it holds none.

    Raises ResourceError where Earthdata Login does not take it.
    """
    if requests.utils.get_netrc_auth(f"https://{host}") is None:
        return ""
    # it takes a second to import, and few need it
    import earthaccess
    from earthaccess.exceptions import LoginAttemptFailure, LoginStrategyUnavailable
    from earthaccess.system import EDLHostname, System

    production = earthaccess.PROD
    system = System(
        production.cmr_base_url, production.status_url, production.status_api_url, EDLHostname(host)
    )
    try:
        token = earthaccess.Auth().login(strategy="netrc", system=system).token
        return str(token["access_token"])
    except (
        LoginAttemptFailure,
        LoginStrategyUnavailable,
        requests.RequestException,
        KeyError,
        TypeError,
    ) as error:
        # without its words, which may hold what was sent
        raise ResourceError(
            f"{host} did not take the login in netrc ({type(error).__name__}); mend it, or set EARTHDATA_TOKEN"
        ) from None


class _Bearer(requests.auth.AuthBase):
    """An auth object, because a login in ~/.netrc would replace a plain Authorization header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
