"""What an error of a store means, whoever met it: one rule for reading and writing, for every library.

Errors are told apart by the codes of S3's API, by their HTTP status and by the names of their classes, so that nothing
has to be imported to judge them. What is then said of each: `remote_errors` for who reads, `bucket_errors` for who
writes.
"""

import errno
from typing import Any, Final, Literal

from fp8cli.formats.patience import seconds_of

Trouble = Literal[
    "no credentials",
    "unknown credentials",
    "stale credentials",
    "no bucket",
    "not there",
    "changed",
    "refused",
    "full",
    "busy",
    "failing",
    "unreachable",
    "unable",
    "other",
]
"""Of these `busy`, `failing` (an error of the server's own) and `unreachable` may pass."""

_PASSING: Final = frozenset({"busy", "failing", "unreachable"})

_BY_CODE: Final[dict[str, Trouble]] = {
    "NoSuchBucket": "no bucket",
    "NoSuchKey": "not there",
    "NoSuchUpload": "not there",
    "404": "not there",
    "InvalidAccessKeyId": "unknown credentials",
    "SignatureDoesNotMatch": "unknown credentials",
    "AuthorizationHeaderMalformed": "unknown credentials",
    "ExpiredToken": "stale credentials",
    "ExpiredTokenException": "stale credentials",
    "TokenRefreshRequired": "stale credentials",
    "RequestTimeTooSkewed": "stale credentials",
    "AccessDenied": "refused",
    "AllAccessDisabled": "refused",
    "AccountProblem": "refused",
    "QuotaExceeded": "full",
    "ServiceQuotaExceeded": "full",
    "XMinioAdminBucketQuotaExceeded": "full",
    "XMinioStorageFull": "full",
    "SlowDown": "busy",
    "InternalError": "failing",
    "ServiceUnavailable": "failing",
    "RequestTimeout": "failing",
    "OperationAborted": "failing",
    # What came is not what was sent.
    "BadDigest": "unreachable",
}
_BY_STATUS: Final[dict[int, Trouble]] = {
    401: "refused",
    403: "refused",
    404: "not there",
    408: "failing",
    412: "changed",
    429: "busy",
    500: "failing",
    502: "failing",
    503: "busy",
    504: "failing",
}
_BY_ERRNO: Final[dict[int, Trouble]] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EBUSY: "busy",
    errno.EAGAIN: "busy",
    errno.EREMOTEIO: "failing",
}
_NO_CREDENTIALS: Final = frozenset(
    {
        "AnonymousRefused",
        "DefaultCredentialsError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "TokenRetrievalError",
    }
)
_UNREACHABLE: Final = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectTimeoutError",
        "ConnectionError",
        "EndpointConnectionError",
        "FSTimeoutError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
        "TimeoutError",
        "TransportError",
    }
)


def trouble_of(problem: BaseException) -> Trouble:
    """Judge an error: by what the server answered, else by its class, and its number, or what caused it."""
    if _is(problem, _NO_CREDENTIALS):
        return "no credentials"
    by_code = _BY_CODE.get(code_of(problem))
    if by_code is not None:
        return by_code
    status = status_of(problem)
    if status is not None:
        return _BY_STATUS.get(status, "other")
    if isinstance(problem, FileNotFoundError):
        return "not there"
    if isinstance(problem, PermissionError):
        return "refused"
    if isinstance(problem, NotImplementedError):
        return "unable"
    by_number = _BY_ERRNO.get(getattr(problem, "errno", None) or 0)
    if by_number is not None:
        return by_number
    return "unreachable" if _is(problem, _UNREACHABLE) else "other"


def is_passing(problem: BaseException) -> bool:
    """Whether asking again may help: a busy server, or a connection that broke off or fell silent."""
    return trouble_of(problem) in _PASSING


def pause_asked(problem: BaseException) -> float | None:
    """Return the seconds for which a busy server wants to be left alone; None if it does not say."""
    headers = _answer(problem).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return seconds_of(headers.get("retry-after"))


def code_of(problem: BaseException) -> str:
    """Return the code that a server answered with, such as `NoSuchBucket`; empty for what is no answer."""
    return str(_answer(problem).get("Error", {}).get("Code", ""))


def status_of(problem: BaseException) -> int | None:
    """Return the HTTP status of an answer; None for what is none."""
    told = _answer(problem).get("ResponseMetadata", {}).get("HTTPStatusCode")
    if told is None:
        # So do gcsfs and others; botocore's errors have it in their answer, or as their code.
        told = getattr(problem, "code", None) or code_of(problem)
    try:
        return int(told)
    except (TypeError, ValueError):
        return None


def _answer(problem: BaseException | None) -> dict[str, Any]:
    """Return what botocore keeps of an answer; s3fs raises errors of its own, caused by those of botocore."""
    while problem is not None:
        response = getattr(problem, "response", None)
        if isinstance(response, dict):
            return response
        problem = problem.__cause__
    return {}


def _is(problem: BaseException | None, names: frozenset[str]) -> bool:
    """Whether it, or what caused it, is of a class with one of these names."""
    while problem is not None:
        if not names.isdisjoint(kind.__name__ for kind in type(problem).__mro__):
            return True
        problem = problem.__cause__
    return False
