"""Whether a checkpoint carries an fp8.json that can be read, and what it was made from. No file is hashed here."""

from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.inspection.verdicts import counted
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.checkpoint import Folder
from fp8cli.formats.provenance import PROVENANCE, ProvenanceFile, read_provenance

_CHECK: Final = "provenance"


def check_provenance(folder: Folder, seen: Survey) -> tuple[Finding, ...]:
    """Return a finding where there is an fp8.json; a checkpoint that has none says nothing, and is no worse for it."""
    if PROVENANCE not in seen.files:
        return ()
    try:
        found = read_provenance(folder)
    except CannotRun as problem:
        return (Finding(check=_CHECK, status="not checked", subject=None, found=problem.message, remedy=problem.hint),)
    except BadInput as problem:
        return (
            Finding(
                check=_CHECK,
                status="warning",
                subject=None,
                found=problem.message,
                consequence="nobody can tell by it whether the files are those that were made",
                remedy=problem.hint,
            ),
        )
    return (Finding(check=_CHECK, status="passed", subject=None, found=_sentence(found)),)


def _sentence(found: ProvenanceFile) -> str:
    commit = "" if found.source.commit is None else f" at commit {found.source.commit}"
    hashed = sum(facts.sha256 is not None for facts in found.files.values())
    return (
        f"`{PROVENANCE}`: made from `{found.source.name}`{commit} by fp8 {found.plan.command}, "
        f"with the SHA-256 of {counted(hashed, 'file')}; fp8 verify compares them"
    )
