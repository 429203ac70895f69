"""Downloads from LP DAAC over HTTPS with an Earthdata login."""

import netrc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import requests
from pydantic import Field, PrivateAttr

from resources.addresses import leads_to, require_host
from resources.errors import (
    ForbiddenError,
    IntegrityError,
    LoginError,
    NotAFileError,
    RefusedError,
    ResourceError,
    TryAgainError,
)
from resources.http import (
    RETRIED_STATUSES,
    RestrictedSession,
    get_file,
    retry_after,
    translate_errors,
)
from resources.ipfs.unixfs import matches_cid
from resources.json_values import mapping, parse, text
from resources.parts import Parts, Range, Turn, obtain
from resources.ranges import HttpRanges, Piece, get_range
from resources.resume import PartialFiles, move
from resources.settings import Seconds, Settings, TimeoutSeconds
from resources.sources import FileRequest, PartsRequest

_LOGIN_SECONDS = 10.0
_FILE_VARIABLE = "EARTHDATA_TOKEN_FILE"
_MAX_TOKEN = 65_536

_Got = TypeVar("_Got")


class LpDaac(Settings):
    """HTTPS downloads from LP DAAC, with a bearer token, or that in the file EARTHDATA_TOKEN_FILE, or else the login in
    ~/.netrc.

    The token is sent only to LP DAAC, not to the storage that it redirects to.
    """

    token: str = Field(
        default="", description="Earthdata Login bearer token; set it as EARTHDATA_TOKEN.", repr=False
    )
    hosts: list[str] = Field(
        default=["data.lpdaac.earthdatacloud.nasa.gov"], description="Hosts that files are fetched from."
    )
    storage_hosts: list[str] = Field(
        default=["cloudfront.net", "amazonaws.com"],
        description="Hosts, with their subdomains, that redirects to presigned storage may lead to.",
    )
    login_host: str = Field(
        default="urs.earthdata.nasa.gov",
        description="Earthdata Login's host, by which ~/.netrc names the login.",
    )
    timeout_seconds: TimeoutSeconds = 60
    first_seconds: Seconds = Field(
        default=15,
        description="Most seconds to wait for the next bytes while other sources may have the file. After these, a "
        "silent LP DAAC is asked with `timeout_seconds`.",
    )
    _local: threading.local = PrivateAttr(default_factory=threading.local)
    _login: "_Login" = PrivateAttr(default_factory=lambda: _Login())

    @property
    def name(self) -> str:
        return "LP DAAC"

    @property
    def host(self) -> str:
        return self.hosts[0] if self.hosts else ""

    @property
    def by_cid(self) -> bool:
        return False

    def offers(self, request: FileRequest) -> bool:
        return bool(request.url)

    def fetch(
        self,
        request: FileRequest,
        destination: Path,
        partials: PartialFiles,
        progress: Callable[[int], None],
        brief: bool = False,
    ) -> bool:
        """Download the file at `request.url`; returns True if it has the CID, in a common layout.

        Resumes a partial download if the server identifies versions. Raises IntegrityError for another host, a link
        that `addresses.read` refuses, or too many bytes; CutShortError for too few; LoginError (401) or ForbiddenError
        (403) with how to log in; NotFoundError; UnavailableError.
        """
        url, seconds = request.url, self._seconds(brief)
        require_host(url, self.hosts)
        with partials.holding(url) as path:
            self._with_login(
                lambda login: get_file(self._session, url, seconds, request.max_bytes, path, login, progress)
            )
            move(path, destination)
        return bool(request.cid) and matches_cid(destination, request.cid)

    def fetch_parts(self, wanted: PartsRequest, destination: Path) -> bool:
        """What is selected of the file, by ranges; returns True if they are checked leaf by leaf, for which the tree of
        the file's CID must be known. Raises as `fetch`, NotInPartsError, and the errors of the selection.
        """
        url, seconds = wanted.file.url, self._seconds(wanted.brief)
        require_host(url, self.hosts)
        tree = wanted.tree()

        def get(place: str, one: Range, tag: str) -> Piece:
            if place != url:
                # what a redirect has led to takes no login
                return get_range(self._session, place, one, seconds, None, tag, url)
            return self._with_login(lambda login: get_range(self._session, url, one, seconds, login, tag))

        with (
            wanted.partials.holding(f"parts of {tree.root if tree else url}") as path,
            Parts(path, wanted.progress) as parts,
        ):
            pool, most = wanted.selection.pool, wanted.file.max_bytes
            ranges = HttpRanges(url, parts, get, most, pool, wanted.turn, tree)
            return obtain(wanted.selection, parts, ranges, destination)

    def tree(self, request: FileRequest, turn: Turn, brief: bool) -> None:
        return None

    def _seconds(self, brief: bool) -> float:
        return min(self.first_seconds if brief else self.timeout_seconds, self.timeout_seconds)

    @property
    def _session(self) -> RestrictedSession:
        if not hasattr(self._local, "session"):
            self._local.session = RestrictedSession(self._may_redirect, login_hosts=self.hosts)
        session: RestrictedSession = self._local.session
        return session

    def _with_login(self, get: Callable[["_Bearer | None"], _Got]) -> _Got:
        """What `get` returns for the login, with a new token if that of netrc has expired; errors say how to log in."""
        token, fresh = self._bearer()
        try:
            return self._advised(get, token)
        except LoginError:
            # the token of the login in netrc may have expired
            if not token or fresh or self._configured():
                raise
            self._login.forget(token)
            return self._advised(get, self._bearer()[0])

    def _advised(self, get: Callable[["_Bearer | None"], _Got], token: str) -> _Got:
        try:
            return get(_Bearer(token) if token else None)
        except ResourceError as error:
            advice = f"set EARTHDATA_TOKEN to a token from {self.login_host}, or put that host's login into ~/.netrc"
            if isinstance(error, NotAFileError):
                raise NotAFileError(f"{error}; if that is a login page, {advice}") from None
            if isinstance(error, LoginError):
                raise LoginError(f"{error}; {advice}") from None
            if f"redirects to {self.login_host}" in str(error) or (
                isinstance(error, ForbiddenError) and not token
            ):
                raise ForbiddenError(f"{error}; {advice}") from None
            if isinstance(error, ForbiddenError):
                raise ForbiddenError(
                    f"{error}; the login itself was taken: look at the account's applications and agreements "
                    f"(EULAs) at https://{self.login_host}"
                ) from None
            raise

    def _may_redirect(self, url: str, target: str) -> bool:
        return leads_to(target, [*self.hosts, *self.storage_hosts])

    def _bearer(self) -> tuple[str, bool]:
        """The configured token, or that of the login in netrc, or ""; and whether it is new."""
        token = self._configured()
        # http.client would refuse it too, with the token in its message
        if not _is_token(token):
            name = "EARTHDATA_TOKEN" if self.token.strip() else _FILE_VARIABLE
            raise ResourceError(f"{name} has characters that no token has; copy it again")
        return (token, False) if token else self._login.token(self.login_host)

    def _configured(self) -> str:
        return self.token.strip() or _token_of_file()


class _Login:
    """The Earthdata token of the login in netrc, requested once for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: str | None = None
        self._refused: ForbiddenError | None = None

    def token(self, host: str) -> tuple[str, bool]:
        """The token, or "" if netrc has no login for `host`; and whether it was requested just now.

        Raises LoginError or ForbiddenError if the login is refused, and again on each later call without another
        attempt, because repeated attempts lock an account; TryAgainError if the login server fails.
        """
        with self._lock:
            if self._refused:
                raise type(self._refused)(str(self._refused))
            if self._token is not None:
                return self._token, False
            try:
                self._token = _netrc_token(host)
            except ForbiddenError as error:
                self._refused = error
                raise
            return self._token, True

    def forget(self, token: str) -> None:
        """Request another token next time, unless `token` was already replaced."""
        with self._lock:
            if self._token == token:
                self._token = None


def _token_of_file() -> str:
    """The token in the file that EARTHDATA_TOKEN_FILE names, or "" without the variable.

    It is read for each file, because a mounted secret may be replaced while a process runs.
    """
    path = os.environ.get(_FILE_VARIABLE)
    if not path:
        return ""
    try:
        with Path(path).open(encoding="ascii") as file:
            token = file.read(_MAX_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ForbiddenError(f"{_FILE_VARIABLE}: {path} cannot be read ({type(error).__name__})") from None
    if not token:
        raise ForbiddenError(f"{_FILE_VARIABLE}: {path} is empty")
    return token


def _netrc_token(host: str) -> str:
    try:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    except RuntimeError:
        # no HOME and no passwd entry, as in a container with an arbitrary user id
        return ""
    try:
        login = netrc.netrc(path).hosts.get(host) if path.is_file() else None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        raise ForbiddenError(
            f"{path} cannot be read ({type(error).__name__}); fix it, or set EARTHDATA_TOKEN"
        ) from None
    return _new_token(host, login[0], login[2]) if login else ""


def _new_token(host: str, user: str, password: str) -> str:
    """Find or create a token of the account, by one POST to Earthdata Login.

    No error quotes the response, which may repeat the login. Raises LoginError for 401, ForbiddenError for any other
    response without a token, TryAgainError if the server fails.
    """
    url = f"https://{host}/api/users/find_or_create_token"
    auth = requests.auth.HTTPBasicAuth(user.encode(), password.encode())
    status = 0
    try:
        # not streamed, so the session reads the complete response, within its limits
        with (
            translate_errors(f"https://{host}"),
            RestrictedSession(lambda *_: False, login_hosts=[host]) as session,
        ):
            answer = session.post(
                url, headers={"Accept": "application/json"}, auth=auth, timeout=_LOGIN_SECONDS
            )
        status = answer.status_code
        if status in RETRIED_STATUSES or status >= 500:
            raise TryAgainError(f"the login server {host} answered {status}", retry_after(answer))
        reason = "it gave no token" if status == 200 else f"it answered {status}"
        token = text(mapping(parse(answer.content)).get("access_token")) if status == 200 else ""
        if token and _is_token(token):
            return token
    except (IntegrityError, RefusedError, ValueError) as error:
        reason = type(error).__name__
    advice = "correct it, or set EARTHDATA_TOKEN"
    if status == 403:
        advice += f"; https://{host} shows whether the account is locked or has agreements (EULAs) to accept"
    kind = LoginError if status == 401 else ForbiddenError
    raise kind(f"{host} did not take the login in netrc ({reason}); {advice}")


def _is_token(token: str) -> bool:
    return token.isascii() and token.isprintable()


class _Bearer(requests.auth.AuthBase):
    """An auth object, because requests would replace a plain Authorization header by a login in ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
