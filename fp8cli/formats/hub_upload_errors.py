"""What can go wrong when something is sent to the Hub, each in one sentence with the next step; see `hub_errors`."""

from typing import Any, Final

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.hub_errors import HubRequest, explain, is_passing
from fp8cli.formats.patience import seconds_of

_KEPT: Final = "what was sent is kept: run the same command again"
_CHANGED: Final = frozenset({409, 412})
_TOO_MUCH: Final = frozenset({402, 413, 507})


def is_passing_upload(problem: BaseException) -> bool:
    """Whether asking again may help."""
    return is_passing(_unwrapped(problem)) or isinstance(_unwrapped(problem), ConnectionError)


def status_of(problem: BaseException) -> int | None:
    """Return the HTTP status that the Hub answered with; None if it did not answer."""
    response: Any = getattr(_unwrapped(problem), "response", None)
    return None if response is None else int(response.status_code)


def retry_after(problem: BaseException) -> float | None:
    """Return the seconds that the Hub asked to wait, if it did."""
    response: Any = getattr(_unwrapped(problem), "response", None)
    return None if response is None else seconds_of(response.headers.get("Retry-After"))


def explain_upload(problem: BaseException, request: HubRequest) -> Fp8Error:
    """Return what to tell the user about an error of huggingface_hub, its HTTP client, or the disk."""
    problem = _unwrapped(problem)
    repo, host, status = request.repo_id, request.host, status_of(problem)
    if type(problem).__name__ == "HFValidationError":
        message = f"`{repo}` cannot be the name of a repository on the Hub"
        return UsageError(message, hint="write ORG/NAME: letters, digits, `-`, `_` and `.`, at most 96 of them")
    if status in {401, 403, 404}:
        return _explain_refusal(status, repo, host, with_token=_has_token(problem))
    if status in _CHANGED:
        message = f"`{repo}` was changed by somebody else meanwhile (HTTP {status})"
        hint = "nothing was changed by this run; look at it, and run the same command with --overwrite to replace it"
        return CannotRun(message, hint=hint)
    if status in _TOO_MUCH:
        message = f"{host} takes no more from you: the quota of `{repo}`'s owner is used up (HTTP {status})"
        return CannotRun(message, hint=f"make room there; {_KEPT}")
    if status == 429:
        message = f"{host} takes no more requests from you for now (HTTP 429)"
        return CannotRun(message, hint=f"wait a few minutes; {_KEPT}")
    if status is not None and status >= 500:
        message = f"{host} answers with HTTP {status}"
        return CannotRun(message, hint=f"later, {_KEPT}")
    return explain(problem, request)


def _explain_refusal(status: int, repo: str, host: str, *, with_token: bool) -> Fp8Error:
    if not with_token:
        message = f"{host} lets nobody write to `{repo}` without a token"
        return CannotRun(message, hint="log in: hf auth login; or set HF_TOKEN")
    if status == 401:
        message = f"{host} does not accept your access token"
        return CannotRun(message, hint="log in again: hf auth login; HF_TOKEN, if set, goes before it")
    message = f"{host} does not let you write to `{repo}` (HTTP {status})"
    return CannotRun(message, hint=f"your token needs write access to it; see {host}/settings/tokens")


def _has_token(problem: BaseException) -> bool:
    response: Any = getattr(problem, "response", None)
    return response is not None and "authorization" in response.request.headers


def _unwrapped(problem: BaseException) -> BaseException:
    """Return what an error of an upload was caused by: huggingface_hub says no more in it than which file it was."""
    while type(problem) is RuntimeError and problem.__cause__ is not None:
        problem = problem.__cause__
    return problem
