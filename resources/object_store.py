"""Errors of an object store (of s3fs, botocore and GDAL), translated: which bucket and key, why, and what to set."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rasterio.errors import RasterioError

from resources.addresses import shown
from resources.errors import (
    ForbiddenError,
    LoginError,
    ResourceError,
    StoreError,
    TryAgainError,
    UnreachableError,
)
from resources.words import server_words

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from upath import UPath

_S3, _GDAL = "s3://", "/vsis3/"
_BAD_LOGIN = {
    *(
        "AuthFailure",
        "CredentialsNotSupported",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
    ),
    *("InvalidClientTokenId", "InvalidSecurity", "InvalidToken", "RequestExpired", "SignatureDoesNotMatch"),
    *("TokenRefreshRequired", "UnrecognizedClientException", "401"),
}
_WRONG_CLOCK = {"RequestTimeTooSkewed", "RequestInTheFuture"}
_ELSEWHERE = {
    *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "Redirect"),
    *("TemporaryRedirect", "301", "307"),
}
_CHECKSUMS = {"MissingContentLength", "NotImplemented", "XAmzContentSHA256Mismatch", "411", "501"}
_CHECKSUM_WORDS = re.compile(r"checksum|x-amz-(?!date|security)|content-sha256|trailer|aws-chunked", re.I)
_BUSY = {
    *("BandwidthLimitExceeded", "InternalError", "InvalidRange", "OperationAborted", "PreconditionFailed"),
    *("RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"),
    *("ThrottlingException", "TooManyRequests"),
}
_BUSY_STATUSES = (408, 409, 412, 416, 429)
_GDAL_BUSY = re.compile(
    r"response code:? *(5(?!01)\d\d|429)|SlowDown|CURL error|timed out|resolve host", re.I
)
_GDAL_REFUSED = re.compile(
    r"AWS_SECRET_ACCESS_KEY|response code:? *4\d\d|AccessDenied|InvalidAccessKeyId", re.I
)

_SET_LOGIN = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), and start again"
)
_SET_CHECKSUMS = (
    "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
)
_SET_GDAL = "GDAL wants AWS_S3_ENDPOINT, AWS_HTTPS and AWS_VIRTUAL_HOSTING, or a login: see docs/operating.md"


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """Turn errors of s3fs, botocore and GDAL about `place` (s3://bucket/key, /vsis3/bucket/key) into a ResourceError.

    Raises LoginError, ForbiddenError or StoreError if trying again does not help, and UnreachableError or
    TryAgainError if it may. A missing file still raises FileNotFoundError, and a damaged raster RasterioError.
    Other errors, and errors of other places, are not changed.
    """
    if not place.startswith((_S3, _GDAL)):
        yield
        return
    # a local file needs none of what reads object stores
    from upath import UPath

    path = UPath(_S3 + place.removeprefix(_GDAL).removeprefix(_S3), use_listings_cache=False)
    try:
        yield
    except ResourceError:
        raise
    except Exception as error:
        found = _of_gdal(path, error) if isinstance(error, RasterioError) else _of_s3fs(path, error)
        if found is None:
            raise
        # the chain that botocore and Dagster would show is long and less clear
        raise found from None


def _of_s3fs(path: "UPath", error: Exception) -> ResourceError | None:
    # imported only if an object store is used
    import aiohttp
    from botocore import exceptions as boto

    raised = _first(error, (boto.BotoCoreError, boto.ClientError))
    if isinstance(raised, boto.ClientError):
        return _of_answer(path, raised)
    reason = _words(raised or error)
    if isinstance(raised, boto.SSLError):
        return UnreachableError(
            f"{path}: {_server(raised)} cannot be reached ({reason}); where a proxy or firewall signs certificates, "
            "set AWS_CA_BUNDLE to its authority's, and GDAL_CURL_CA_BUNDLE to the same for GDAL"
        )
    if isinstance(
        raised, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError
    ):
        return UnreachableError(
            f"{path}: {_server(raised)} cannot be reached; check the network and AWS_ENDPOINT_URL "
            f"(or AWS_REGION), and HTTPS_PROXY"
        )
    passing = (TimeoutError, ConnectionError, aiohttp.ClientError)
    # a ValueError is raised by the client itself, for example for an invalid address
    unusable = isinstance(getattr(raised, "kwargs", {}).get("error"), ValueError)
    broke_off = isinstance(raised, boto.HTTPClientError | boto.IncompleteReadError) and not unusable
    if broke_off or isinstance(error, passing):
        return TryAgainError(f"{path}: the object store was silent or broke off ({reason}); try again later")
    logins = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    if isinstance(raised, (*logins, boto.TokenRetrievalError, boto.SSOError, boto.ProfileNotFound)):
        return LoginError(f"{path}: there is no login for the object store ({reason}); {_SET_LOGIN}")
    if raised is not None or str(error).startswith("Invalid endpoint"):
        return StoreError(
            f"{path}: it cannot be used ({reason}); check its name, AWS_REGION, and AWS_ENDPOINT_URL (http://host:port)"
        )
    return None


def _of_answer(path: "UPath", error: "ClientError") -> ResourceError | None:
    """The error that a server's refusal means; None if the key does not exist."""
    code, status = _code(error)
    if code.isdecimal() and status != 404 and (status < 500 or status == 501):
        error = _with_words(path, error)
        code, status = _code(error)
    reason = f"{code}: {_words(error)}"
    bucket = path.path.split("/", 1)[0]
    # responses to HEAD have no code
    if code == "NoSuchKey" or (status == 404 and error.operation_name == "HeadObject"):
        return None
    # a server that is not an object store answers 404 to everything
    if code in ("NoSuchBucket", "InvalidBucketName") or status == 404:
        return StoreError(
            f"{path}: there is no bucket {bucket} at {_server()} ({reason}); create it, or correct CROP_ASSETS_DATA "
            "(--data), AWS_ENDPOINT_URL or AWS_REGION"
        )
    if code in _BAD_LOGIN or status == 401:
        return LoginError(f"{path}: the object store does not take the login ({reason}); {_SET_LOGIN}")
    if code in _WRONG_CLOCK:
        return StoreError(f"{path}: refused ({reason}); set this machine's clock")
    if code in _ELSEWHERE or status in (301, 307):
        return StoreError(
            f"{path}: the bucket {bucket} is in another region ({reason}); set AWS_REGION to it, or AWS_ENDPOINT_URL"
        )
    if code in _BUSY or status in _BUSY_STATUSES or (status >= 500 and code not in _CHECKSUMS):
        return TryAgainError(f"{path}: the object store is busy or failing ({reason}); try again later")
    if code in _CHECKSUMS or (status == 400 and _CHECKSUM_WORDS.search(reason)):
        return StoreError(
            f"{path}: the object store refuses a request's headers, such as its checksums ({reason}); {_SET_CHECKSUMS}"
        )
    if status == 403:
        return ForbiddenError(
            f"{path}: access is denied ({reason}); the login needs s3:ListBucket, s3:GetObject, s3:PutObject and "
            f"s3:DeleteObject in the bucket {bucket}; grant these, or {_SET_LOGIN}"
        )
    return StoreError(
        f"{path}: the object store refuses it ({reason}); check AWS_ENDPOINT_URL and AWS_REGION"
    )


def _with_words(path: "UPath", error: "ClientError") -> "ClientError":
    """The error of a listing instead of HEAD, whose responses have no body and so no reason."""
    from botocore.exceptions import ClientError

    bucket, _, key = path.path.partition("/")
    try:
        path.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except Exception as other:
        found = _first(other, (ClientError,))
        return found if isinstance(found, ClientError) else error
    return error


def _of_gdal(path: "UPath", error: Exception) -> ResourceError | None:
    """Why GDAL could not read an object; None if the object store is not the cause.

    GDAL reports a missing bucket as "not a supported file format", so s3fs is asked for the cause.
    """
    try:
        with translated(str(path)):
            path.stat()
    except ResourceError as found:
        return found
    except OSError:
        return None
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
        texts.append(str(error))
    reason = server_words("; ".join(texts).encode(), _secrets())
    unset = bool(_endpoint()) and not os.environ.get("AWS_S3_ENDPOINT")
    if _GDAL_BUSY.search(reason) and not unset:
        return TryAgainError(f"{path}: the object store is busy or failing ({reason}); try again later")
    if unset or _GDAL_REFUSED.search(reason):
        return StoreError(f"{path}: GDAL cannot read it, but s3fs can ({reason}); {_SET_GDAL}")
    return None


def _first(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> Exception | None:
    """The first error of these kinds among an error and its causes."""
    while error is not None:
        if isinstance(error, kinds):
            return error
        error = error.__cause__ or error.__context__
    return None


def _code(error: "ClientError") -> tuple[str, int]:
    """The code of a refusal, such as NoSuchBucket, or its status if the response has no body; and its status."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code, int(status or (code if code.isdecimal() else 0))


def _words(error: Exception) -> str:
    answer = getattr(error, "response", None) or {}
    text = answer.get("Error", {}).get("Message") or str(error) or type(error).__name__
    return server_words(text.encode(), _secrets())


def _secrets() -> tuple[str, ...]:
    values = (os.environ.get(name, "") for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"))
    return tuple(value for value in values if len(value) >= 6)


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _server(error: Exception | None = None) -> str:
    """The server's host and port, without a login."""
    url = str(getattr(error, "kwargs", {}).get("endpoint_url") or _endpoint())
    return shown(url).split("://")[-1].split("/")[0].removeprefix("…@") or "AWS"
