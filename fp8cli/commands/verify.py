"""`fp8 verify`: the files of a checkpoint, and of its source, against the hashes in its fp8.json.

A checkpoint folder, one file of it, or a Hub id, which is read in full by range requests. Nothing is loaded, so that
no file can do harm, whatever it holds.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.machine.probes import usable_cpus
from fp8cli.core.verifying.verification import DIFFERENT, UNKNOWN, FileVerdict, verify_files
from fp8cli.errors import BadInput, CannotRun, ExitCode
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.provenance import PROVENANCE, PlanNote, ProvenanceFile, read_provenance
from fp8cli.formats.remote_headers import CONNECTIONS
from fp8cli.formats.sources import Source, resolve_anything

Verdict = Literal["matches", "differs", "not known"]
"""Every byte is what fp8.json says; something is not; nothing is known to differ, but not all could be compared."""
Notify = Callable[[ReadingBegins | BytesRead], None]


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What to check."""

    checkpoint: str
    """A checkpoint folder, a file of one, or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    source: str | None = None
    """What the checkpoint was made from, to be checked too: a folder, or a Hub id."""


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """The files of the source against what fp8.json says that was read."""

    path: str
    verdict: Verdict
    hub_says: tuple[str, ...]
    """Files whose recorded SHA-256 was the Hub's word when the checkpoint was made."""
    files: tuple[FileVerdict, ...]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What fp8.json says, and whether the files are that."""

    path: str
    verdict: Verdict
    """On the checkpoint and its source together."""
    provenance_sha256: str
    """Of fp8.json itself: who has it from a trusted place can trust the rest."""
    tools: dict[str, str]
    plan: PlanNote
    source_name: str
    source_commit: str | None
    files: tuple[FileVerdict, ...]
    """Of a file by itself the one."""
    source: SourceReport | None
    """None: nobody asked for it."""
    bytes_read: int

    @property
    def exit_code(self) -> ExitCode:
        """1 when something differs, 3 when that could not be found out for every file."""
        match self.verdict:
            case "matches":
                return ExitCode.DONE
            case "differs":
                return ExitCode.NEGATIVE
            case "not known":
                return ExitCode.COULD_NOT_RUN


def run(request: VerifyRequest, notify: Notify = lambda _: None) -> VerifyReport:
    """Verify. Raises Fp8Error where there is no fp8.json to go by, or the source is nowhere."""
    place = resolve_anything(request.checkpoint, request.revision)
    only = None
    if isinstance(place, LocalFile):
        # The file itself by its own name, whatever the folder is called.
        only = None if place.path.name == PROVENANCE else place.path.name
        place = LocalFolder(place.path.parent)
    place = _here_if_offline(place)
    provenance = read_provenance(place)
    recorded = provenance.files
    if only is not None:
        if only not in recorded:
            message = f"`{PROVENANCE}` of `{place.label}` does not name `{only}`"
            raise CannotRun(message, hint="give the folder, to see what else differs")
        recorded = {only: recorded[only]}
    source = None if request.source is None else _find_source(request.source, provenance)
    files = verify_files(place, recorded, extras=only is None, workers=_workers(place), notify=notify)
    about_source = None
    if source is not None:
        its_files = verify_files(source, provenance.source.files, extras=False, workers=_workers(source), notify=notify)
        about_source = SourceReport(
            path=_label(source), verdict=_verdict(its_files), hub_says=provenance.source.hub_says, files=its_files
        )
    everything = (*files, *(() if about_source is None else about_source.files))
    return VerifyReport(
        path=_label(place),
        verdict=_verdict(everything),
        provenance_sha256=hashlib.sha256(place.read(PROVENANCE)).hexdigest(),
        tools=dict(provenance.tools),
        plan=provenance.plan,
        source_name=provenance.source.name,
        source_commit=provenance.source.commit,
        files=files,
        source=about_source,
        bytes_read=sum(verdict.bytes or 0 for verdict in everything if verdict.sha256 is not None),
    )


def _find_source(name: str, provenance: ProvenanceFile) -> Source:
    """Return the source by the name that the user gives; of a Hub id that fp8.json names the commit that was read."""
    found = resolve_anything(name)
    if isinstance(found, LocalFile):
        message = f"`{name}` is a file, not the folder that the checkpoint was made from"
        raise BadInput(message, hint="give the folder that holds config.json and the .safetensors files")
    recorded = provenance.source
    if isinstance(found, HubRepo) and found.revision is None and found.repo_id == recorded.name:
        found = HubRepo(found.repo_id, recorded.commit)
    return _here_if_offline(found)


def _here_if_offline(source: Source) -> Source:
    cached = source.cached if isinstance(source, HubRepo) else None
    return source if cached is None else cached


def _label(source: Source) -> str:
    return f"{source.repo_id}@{source.commit}" if isinstance(source, HubRepo) else source.label


def _workers(source: Source) -> int:
    return usable_cpus() if isinstance(source, LocalFolder) else CONNECTIONS


def _verdict(files: tuple[FileVerdict, ...]) -> Verdict:
    statuses = {verdict.status for verdict in files}
    if statuses & DIFFERENT:
        return "differs"
    return "not known" if statuses & UNKNOWN else "matches"
