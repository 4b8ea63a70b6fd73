"""What can go wrong with a place that is written to, each in one sentence with the next step.

What an error means is judged in `store_errors`. Messages are built from names, never from a request: those carry
signatures.
"""

from typing import Final

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.addresses import Address
from fp8cli.formats.remote_errors import EXTRAS
from fp8cli.formats.store_errors import code_of, trouble_of

_KEEPS: Final = "what was sent is kept: run the same command again"


def explain(problem: BaseException, address: Address) -> Fp8Error:
    """Return what to tell the user about an error of a store's library, or of another file system of fsspec."""
    code, place = code_of(problem), address.text
    bucket, is_gcs = address.path.partition("/")[0], EXTRAS.get(address.scheme) == "gcs"
    match trouble_of(problem):
        case "no bucket":
            message = f"there is no bucket `{bucket}`"
            show = f"gcloud storage ls gs://{bucket}" if is_gcs else f"aws s3 ls s3://{bucket}"
            return CannotRun(message, hint=f"make it, or check the name and the endpoint: {show}")
        case "no credentials":
            message = f"no credentials were found for `{place}`"
            aws = "aws configure, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and its secret"
            return CannotRun(message, hint="gcloud auth application-default login" if is_gcs else aws)
        case "unknown credentials":
            message = f"`{place}` does not know the credentials that were found ({code})"
            return CannotRun(message, hint="check AWS_PROFILE, AWS_ACCESS_KEY_ID, the region and the endpoint")
        case "stale credentials":
            message = f"the credentials for `{place}` are too old, or this machine's clock is wrong ({code})"
            return CannotRun(message, hint=f"log in again; {_KEEPS}")
        case "refused":
            message = f"access to `{place}` is denied"
            role = "roles/storage.objectUser on the bucket" if is_gcs else "s3:PutObject, s3:ListBucket, …"
            return CannotRun(message, hint=f"the credentials need to list, read, write and delete there: {role}")
        case "full":
            message = f"`{place}` is full{f' ({code})' if code else ''}"
            return CannotRun(message, hint=f"make room there; {_KEEPS}")
        case "busy":
            message = f"`{place}` takes no more requests for now ({code or _words(problem)})"
            return CannotRun(message, hint=f"wait a few minutes; {_KEEPS}")
        case "failing":
            message = f"`{place}` answers with an error of its own ({code or _words(problem)})"
            return CannotRun(message, hint=f"later, {_KEEPS}")
        case "unreachable":
            message = f"`{place}` cannot be reached, or the connection breaks off: {_words(problem)}"
            endpoint = "STORAGE_EMULATOR_HOST" if is_gcs else "AWS_ENDPOINT_URL"
            return CannotRun(message, hint=f"check the network, the proxy settings and {endpoint}; {_KEEPS}")
        case "unable":
            message = f"nothing can be written to `{place}`"
            return UsageError(message, hint="choose another place with -o")
        case "not there" | "changed" | "other":
            message = f"`{place}` cannot be written to: {code or _words(problem)}"
            return CannotRun(message, hint=f"when that is mended, {_KEEPS}")


def missing_package(address: Address, extra: str) -> Fp8Error:
    """Return the error for a kind of place whose package, one of our extras, is not installed."""
    message = f"the package that writes to `{address.text}` is not installed"
    return CannotRun(message, hint=f'pip install "fp8cli[{extra}]"')


def _words(problem: BaseException) -> str:
    return str(problem).partition("\n")[0].strip().rstrip(".") or type(problem).__name__
