"""What can go wrong with the outside world, told apart by what a caller should do about it.

Belongs here: errors of protocols and servers. Does not: errors of a dataset's own inputs
(`crop_assets.errors`).
"""

from resources.plain_text import plain_text


class ResourceError(Exception):
    """The outside world did not give what was asked of it. The message says what, where, and what to do.

    It is bounded and on one line, whatever of the outside world it repeats.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(plain_text(message))


class ForbiddenError(ResourceError):
    """The server does not give it to this login, or to none."""


class LoginError(ForbiddenError):
    """The server does not take the login, or wants one. Another login may help."""


class StoreError(ResourceError):
    """The object store does not do what is asked until a setting is changed: no such bucket, or a refused request."""


class RefusedError(ResourceError):
    """The server does not do it, whoever asks: a status such as 400, a redirect that is not followed."""


class UnavailableError(ResourceError):
    """A server could not be reached, or kept failing. Trying again later may help."""


class NotAFileError(RefusedError):
    """A server answered 200 with a web page or a message in place of what was asked for, as of a login or a proxy."""


class TryAgainError(UnavailableError):
    """A server may have it in a while, `retry_after` seconds from now at the earliest."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnreachableError(TryAgainError):
    """No connection came about."""


class SlowError(TryAgainError):
    """A server took the request, and then kept silent or dripped."""


class NotFoundError(ResourceError):
    """The server answered, and has no such thing. Trying again does not help."""


class IntegrityError(ResourceError):
    """Bytes are not what they were promised to be: wrong hash, too large, malformed."""


class DamagedError(IntegrityError):
    """Bytes were damaged on their way, or where they come from. Fetching them again may help."""


class CutShortError(TryAgainError):
    """The stream ended before what it carried did."""


class UnsafeNameError(ResourceError):
    """A name from outside (an id, a file name, an href) that must not become a path."""
