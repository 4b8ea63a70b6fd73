"""What can go wrong with a store that fsspec reads, each in one sentence with the next step.

Errors are told apart by the names of their classes and by their status: every store has a library of its own, and
none has to be imported to say what happened. Of what a library says only what `addresses.mask` leaves is shown, and
never a request or its headers, which are signed.
"""

import errno
from typing import Any, Final

from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats.addresses import Address, mask
from fp8cli.formats.patience import seconds_of

EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Which extra of this package brings the library for a scheme."""

_PASSING_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_PASSING: Final = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "EndpointConnectionError",
        "FSTimeoutError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
        "TimeoutError",
    }
)
_PASSING_ERRNO: Final = frozenset({errno.EBUSY, errno.EREMOTEIO, errno.EAGAIN})
_NO_CREDENTIALS: Final = frozenset(
    {
        "DefaultCredentialsError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "TokenRetrievalError",
    }
)
_REFUSED_STATUS: Final = frozenset({401, 403})
_CHANGED: Final = 412


def is_passing(problem: BaseException) -> bool:
    """Whether asking again may help: a busy server, or a connection that broke off or fell silent."""
    status = _status(problem)
    if status is not None:
        return status in _PASSING_STATUS
    if isinstance(problem, FileNotFoundError | PermissionError) or _is(problem, _NO_CREDENTIALS):
        return False
    return _is(problem, _PASSING) or (isinstance(problem, OSError) and problem.errno in _PASSING_ERRNO)


def pause_asked(problem: BaseException) -> float | None:
    """Return the seconds for which a busy server wants to be left alone; None if it does not say."""
    headers = _response(problem).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return seconds_of(headers.get("retry-after"))


def explain(problem: BaseException, address: Address) -> Fp8Error:
    """Return what to tell the user about an error of fsspec, or of the library of a store."""
    label, status = address.label, _status(problem)
    if isinstance(problem, Fp8Error):
        return problem
    if status == _CHANGED:
        return changed(address)
    if _is(problem, _NO_CREDENTIALS):
        return CannotRun(f"no credentials for `{label}` were found", hint=_credentials_hint(address))
    if isinstance(problem, FileNotFoundError):
        return BadInput(f"`{label}` is not there", hint="check the bucket and the folder")
    if isinstance(problem, PermissionError) or status in _REFUSED_STATUS:
        reason = _reason(problem)
        return CannotRun(f"`{label}` does not let you read it: {reason}", hint=_credentials_hint(address))
    message = f"`{label}` cannot be read: {_reason(problem)}"
    return CannotRun(message, hint="check the network and the address; then run the same command again")


def changed(address: Address, name: str | None = None) -> Fp8Error:
    """Return the error for a file that is not the one that was listed."""
    what = f"`{address.label}`" if name is None else f"`{name}` in `{address.label}`"
    message = f"{what} was changed while it was being read"
    return BadInput(message, hint="run the command again when nothing writes to it")


def no_library(address: Address, problem: BaseException) -> Fp8Error:
    """Return the error for a scheme whose library is not there, or that nobody knows."""
    extra = EXTRAS.get(address.scheme)
    if isinstance(problem, ImportError):
        message = f"`{address.label}` needs a package that is not installed"
        hint = f'pip install "fp8cli[{extra}]"' if extra else f"{mask(str(problem)).rstrip('.')} (see fsspec's list)"
        return CannotRun(message, hint=hint)
    message = f"`{address.scheme}://` is no kind of address that fsspec knows"
    return BadInput(message, hint="s3://, gs:// and hf:// are; others are listed at fsspec.available_protocols()")


def _credentials_hint(address: Address) -> str:
    if EXTRAS.get(address.scheme) == "s3":
        return "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a public bucket: FSSPEC_S3_ANON=true"
    if EXTRAS.get(address.scheme) == "gcs":
        return "log in with: gcloud auth application-default login"
    return "give its credentials where fsspec looks for them: FSSPEC_… or ~/.config/fsspec"


def _reason(problem: BaseException) -> str:
    text = mask(str(problem)).partition("\n")[0].strip().rstrip(".")
    return text or type(problem).__name__


def _is(problem: BaseException, names: frozenset[str]) -> bool:
    return not names.isdisjoint(kind.__name__ for kind in type(problem).__mro__)


def _response(problem: BaseException | None) -> dict[str, Any]:
    """Return what botocore keeps of an answer; s3fs raises errors of its own, caused by those of botocore."""
    while problem is not None:
        response = getattr(problem, "response", None)
        if isinstance(response, dict):
            return response
        problem = problem.__cause__
    return {}


def _status(problem: BaseException) -> int | None:
    told = _response(problem).get("ResponseMetadata", {}).get("HTTPStatusCode", getattr(problem, "code", None))
    try:
        return None if told is None else int(told)
    except (TypeError, ValueError):
        return None
