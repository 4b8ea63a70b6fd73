"""What can go wrong with a bucket, or another place of fsspec's, each in one sentence with the next step.

Errors are told apart by the codes of S3's API and by the names of their classes, so that nothing has to be imported to
say what happened. Messages are built from names, never from a request: those carry signatures.
"""

import errno
from typing import Final

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.addresses import Address

_PASSING: Final = frozenset(
    {
        "500",
        "502",
        "503",
        "504",
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "RequestTimeout",
        "OperationAborted",
    }
)
_BROKEN_OFF: Final = frozenset({"HTTPClientError", "ClientPayloadError", "IncompleteReadError", "FSTimeoutError"})
_NOT_REACHED: Final = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError"})
_NO_CREDENTIALS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"})
_UNKNOWN_TO_IT: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"})
_STALE: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed"})
_REFUSED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"})
_FULL: Final = frozenset(
    {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "ServiceQuotaExceeded"}
)
_KEEPS: Final = "what was sent is kept: run the same command again"


def code_of(problem: BaseException) -> str:
    """Return the code that S3's API answered with, such as `NoSuchBucket`; empty for what is no answer of it."""
    for each in _chain(problem):
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
    return ""


def is_passing(problem: BaseException) -> bool:
    """Whether asking again may help: a busy server, or a connection that broke off."""
    if code := code_of(problem):
        return code in _PASSING
    if isinstance(problem, ConnectionError | TimeoutError):
        return True
    return not _kinds(problem).isdisjoint(_BROKEN_OFF | _NOT_REACHED)


def explain(problem: BaseException, address: Address) -> Fp8Error:
    """Return what to tell the user about an error of s3fs, botocore, or another file system of fsspec."""
    code, kinds, place = code_of(problem), _kinds(problem), address.text
    bucket = address.path.partition("/")[0]
    if code == "NoSuchBucket":
        message = f"there is no bucket `{bucket}`"
        return CannotRun(message, hint=f"make it, or check the name and the endpoint: aws s3 ls s3://{bucket}")
    if not kinds.isdisjoint(_NO_CREDENTIALS):
        message = f"no credentials were found for `{place}`"
        return CannotRun(message, hint="aws configure, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and its secret")
    if code in _UNKNOWN_TO_IT:
        message = f"`{place}` does not know the credentials that were found ({code})"
        return CannotRun(message, hint="check AWS_PROFILE, AWS_ACCESS_KEY_ID, the region and the endpoint")
    if code in _STALE:
        message = f"the credentials for `{place}` are too old, or this machine's clock is wrong ({code})"
        return CannotRun(message, hint=f"log in again; {_KEEPS}")
    if code in _REFUSED or isinstance(problem, PermissionError):
        message = f"access to `{place}` is denied"
        hint = "the credentials need to list, read, write and delete there: s3:PutObject, s3:ListBucket, …"
        return CannotRun(message, hint=hint)
    if code in _FULL or getattr(problem, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
        message = f"`{place}` is full{f' ({code})' if code else ''}"
        return CannotRun(message, hint=f"make room there; {_KEEPS}")
    if code in {"SlowDown", "503"}:
        message = f"`{place}` takes no more requests for now ({code})"
        return CannotRun(message, hint=f"wait a few minutes; {_KEEPS}")
    if code in _PASSING:
        message = f"`{place}` answers with an error of its own ({code})"
        return CannotRun(message, hint=f"later, {_KEEPS}")
    if is_passing(problem):
        message = f"`{place}` cannot be reached, or the connection breaks off: {_words(problem)}"
        return CannotRun(message, hint=f"check the network, the proxy settings and AWS_ENDPOINT_URL; {_KEEPS}")
    if isinstance(problem, NotImplementedError):
        message = f"nothing can be written to `{place}`"
        return UsageError(message, hint="choose another place with -o")
    message = f"`{place}` cannot be written to: {code or _words(problem)}"
    return CannotRun(message, hint=f"when that is mended, {_KEEPS}")


def missing_package(address: Address, extra: str) -> Fp8Error:
    """Return the error for a kind of place whose package, one of our extras, is not installed."""
    message = f"the package that writes to `{address.text}` is not installed"
    return CannotRun(message, hint=f'pip install "fp8cli[{extra}]"')


def _chain(problem: BaseException) -> list[BaseException]:
    chain = [problem]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _kinds(problem: BaseException) -> frozenset[str]:
    return frozenset(kind.__name__ for each in _chain(problem) for kind in type(each).__mro__)


def _words(problem: BaseException) -> str:
    return str(problem).partition("\n")[0].strip().rstrip(".") or type(problem).__name__
