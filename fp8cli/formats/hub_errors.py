"""What can go wrong with the Hub, each in one sentence with the next step.

Errors are told apart by the names of their classes: huggingface_hub 1 lets those of httpx through and
huggingface_hub 2 those of httpx2, and nothing has to be imported to say what happened. Messages are built from
names and numbers, never from a request or its headers: those carry the access token, and addresses of files
carry signatures.
"""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats.patience import seconds_of

_PASSING_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_BROKEN_OFF: Final = frozenset({"TimeoutException", "ReadError", "RemoteProtocolError"})
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ROOM_HINT: Final = "make room, or set HF_HOME to a folder on a larger disk"


@dataclass(frozen=True, kw_only=True)
class HubRequest:
    """What was asked, of whom, and where the answer would have gone."""

    repo_id: str
    revision: str | None
    endpoint: str
    cache: Path

    @property
    def host(self) -> str:
        """The endpoint without a user and password that may stand in it."""
        return re.sub(r"//[^/]*@", "//", self.endpoint)


def is_passing(problem: BaseException) -> bool:
    """Whether asking again may help: a busy server, or a connection that broke off."""
    kinds = _kinds(problem)
    if "HfHubHTTPError" in kinds:
        return _response(problem).status_code in _PASSING_STATUS
    return not kinds.isdisjoint(_BROKEN_OFF)


def is_out_of_reach(problem: BaseException) -> bool:
    """Whether no connection could be made: at first a wrong address or no network, later a network that is away."""
    return "ConnectError" in _kinds(problem)


def pause_asked(problem: BaseException) -> float | None:
    """Return the seconds for which a busy server wants to be left alone; None if it does not say."""
    if "HfHubHTTPError" not in _kinds(problem):
        return None
    return seconds_of(_response(problem).headers.get("Retry-After"))


def explain(problem: BaseException, request: HubRequest) -> Fp8Error:
    """Return what to tell the user about an error of huggingface_hub, its HTTP client, or the disk."""
    kinds = _kinds(problem)
    if not kinds.isdisjoint({"LocalEntryNotFoundError", "DryRunError"}) and problem.__cause__ is not None:
        return explain(problem.__cause__, request)
    if not kinds.isdisjoint({"LocalEntryNotFoundError", "OfflineModeIsEnabled"}):
        return not_cached(request)
    if "HfHubHTTPError" in kinds:
        return _explain_refusal(kinds, _response(problem), request)
    if not kinds.isdisjoint({"LocalProtocolError", "UnicodeEncodeError"}):
        # A header that cannot be sent, and only the one with the token is not ours.
        message = "the Hub access token holds characters that no token has"
        return CannotRun(message, hint="set HF_TOKEN again, or log in with: hf auth login")
    if not kinds.isdisjoint({"TransportError", "InvalidURL"}):
        return _unreachable(problem, request)
    if isinstance(problem, OSError) and (found := _explain_disk(problem, request)):
        return found
    if "FileMetadataError" in kinds or isinstance(problem, ValueError | LookupError | TypeError):
        return not_a_hub(request)
    text = str(problem).partition("\n")[0].strip().rstrip(".")
    message = f"`{request.repo_id}` cannot be fetched from {request.host}: {text or type(problem).__name__}"
    return CannotRun(message, hint="run the command again: finished files are kept")


def not_cached(request: HubRequest) -> Fp8Error:
    """Return the error for a model that is wanted offline and not there."""
    message = f"HF_HUB_OFFLINE is set, and `{request.repo_id}` is not in the cache `{request.cache}`"
    revision = f" --revision {request.revision}" if request.revision else ""
    return CannotRun(message, hint=f"fetch it once: HF_HUB_OFFLINE=0 hf download {request.repo_id}{revision}")


def not_a_hub(request: HubRequest) -> Fp8Error:
    """Return the error for answers that no Hub gives: a login page, a wrong address, a half-made mirror."""
    message = f"{request.host} does not answer as a Hugging Face Hub does"
    return CannotRun(message, hint="check HF_ENDPOINT, and that no proxy or login page stands in between")


def no_room(request: HubRequest, *, needed: int, free: int) -> Fp8Error:
    """Return the error for a download that does not fit. Sizes in bytes."""
    message = (
        f"downloading `{request.repo_id}` takes {needed / 1e9:,.2f} GB, "
        f"and `{request.cache}` has {free / 1e9:,.2f} GB free"
    )
    return CannotRun(message, hint=_ROOM_HINT)


def _kinds(problem: BaseException) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(problem).__mro__)


def _response(problem: Any) -> Any:
    # Every HfHubHTTPError has one; its class is not imported here, so no type can say so.
    return problem.response


def _explain_refusal(kinds: frozenset[str], response: Any, request: HubRequest) -> Fp8Error:
    repo, host, status = request.repo_id, request.host, response.status_code
    with_token = "authorization" in response.request.headers
    if "GatedRepoError" in kinds:
        message = f"`{repo}` is gated: its authors let in only those who accept its terms"
        login = "with the account your token belongs to" if with_token else "then log in: hf auth login"
        return CannotRun(message, hint=f"accept them on {host}/{repo}, {login}")
    if "RepositoryNotFoundError" in kinds:
        message = f"`{repo}` is neither a folder here nor a model that {host} shows you"
        login = "your token needs access to it" if with_token else "log in first: hf auth login"
        return BadInput(message, hint=f"check the name; if the model is private, {login}")
    if "RevisionNotFoundError" in kinds:
        message = f"`{repo}` has no revision `{request.revision}`"
        return BadInput(message, hint=f"leave --revision out, or choose one from {host}/{repo}/commits/main")
    if "EntryNotFoundError" in kinds:
        message = f"`{repo}` lists a file that {host} does not have"
        return CannotRun(message, hint="run the command again; if it stays so, the repository is broken")
    if status == 401:
        message = f"{host} does not accept your access token"
        return CannotRun(message, hint="log in again: hf auth login; HF_TOKEN, if set, goes before it")
    if status == 403:
        message = f"{host} does not let you read `{repo}`"
        return CannotRun(message, hint=f"your token needs read access to it; see {host}/settings/tokens")
    if status == 429:
        message = f"{host} takes no more requests from you for now (HTTP 429)"
        return CannotRun(message, hint="wait a few minutes; with hf auth login the limit is higher")
    message = f"{host} answers with HTTP {status} {response.reason_phrase}".rstrip()
    return CannotRun(message, hint="run the command again later: finished files are kept")


def _unreachable(problem: BaseException, request: HubRequest) -> Fp8Error:
    reason = str(problem).partition("\n")[0].strip().rstrip(".") or type(problem).__name__
    message = f"{request.host} cannot be reached for `{request.repo_id}`: {reason}"
    hint = "check the network, the proxy settings and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses only what is in the cache"
    return CannotRun(message, hint=hint)


def _explain_disk(problem: OSError, request: HubRequest) -> Fp8Error | None:
    # hf_xet, which writes most large files, tells a full disk only in words.
    if problem.errno in _NO_ROOM or "No space left" in str(problem):
        message = f"`{request.repo_id}` does not fit into `{request.cache}`: {problem.strerror or 'the disk is full'}"
        return CannotRun(message, hint=f"{_ROOM_HINT}, and run the command again: finished files are kept")
    if problem.errno is not None and problem.filename is not None:
        message = f"`{problem.filename}` cannot be written: {problem.strerror}"
        return CannotRun(message, hint="set HF_HOME to a folder you can write to")
    return None
