"""Errors of protocols and servers, by what the caller should do about them.

`crop_assets.errors` has those of a dataset's own inputs.
"""

from resources.plain_text import plain_text


class ResourceError(Exception):
    """A request to the outside world failed. The message says what, where, and what to do.

    It is bounded and on one line, whatever it repeats of a response.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(plain_text(message))


class ForbiddenError(ResourceError):
    """The server does not allow this with the given login, or without one."""


class LoginError(ForbiddenError):
    """The server refuses the login, or requires one. Another login may help."""


class StoreError(ResourceError):
    """The object store cannot be used until a setting is changed: there is no such bucket, or it refused a request."""


class RefusedError(ResourceError):
    """The server refuses the request from anyone: a status such as 400, or a redirect that is not followed."""


class UnavailableError(ResourceError):
    """A server could not be reached, or kept failing. Trying again later may help."""


class NotAFileError(RefusedError):
    """A server answered 200 with a web page or a message instead of the file, such as a login page."""


class TryAgainError(UnavailableError):
    """A server may have it later: in `retry_after` seconds at the earliest."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnreachableError(TryAgainError):
    """The connection failed."""


class SlowError(TryAgainError):
    """A server accepted the request, but then was silent or too slow."""


class NotFoundError(ResourceError):
    """The server answered that it does not have it. Trying again does not help."""


class IntegrityError(ResourceError):
    """The bytes are wrong: a different hash, too large, or malformed."""


class DamagedError(IntegrityError):
    """The bytes were damaged in transit or at their source. Fetching them again may help."""


class CutShortError(TryAgainError):
    """The stream ended too early."""


class UnsafeNameError(ResourceError):
    """A name from outside (an id, a file name, an href) that must not become a path."""
