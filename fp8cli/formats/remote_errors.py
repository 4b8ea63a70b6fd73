"""What can go wrong with a store that is read, each in one sentence with the next step.

What an error means is judged in `store_errors`. Of what a library says only what `addresses.mask` leaves is shown, and
never a request or its headers, which are signed.
"""

from typing import Final

from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats.addresses import Address, mask
from fp8cli.formats.store_errors import trouble_of

EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Which extra of this package brings the library for a scheme."""


def explain(problem: BaseException, address: Address) -> Fp8Error:
    """Return what to tell the user about an error of fsspec, or of the library of a store."""
    if isinstance(problem, Fp8Error):
        return problem
    label = address.label
    match trouble_of(problem):
        case "changed":
            return changed(address)
        case "no credentials":
            return CannotRun(f"no credentials for `{label}` were found", hint=_credentials_hint(address))
        case "not there" | "no bucket":
            return BadInput(f"`{label}` is not there", hint="check the bucket and the folder")
        case "refused" | "unknown credentials" | "stale credentials":
            reason = _reason(problem)
            return CannotRun(f"`{label}` does not let you read it: {reason}", hint=_credentials_hint(address))
        case _:
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
