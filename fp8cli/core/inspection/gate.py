"""The gate before a checkpoint gets its name: `fp8 inspect`'s own checks, of what lies ready to be published.

Files, headers, config and the values of all scales; no weight is read again. A fault stops the publishing. What a
fault is follows core.inspection, but for three things: a folder that is not finished is no news; what vLLM makes of
modules that the user chose by name is told, not refused; and a scale that would be no more than doubtful in a
stranger's checkpoint is a fault in one that was made here.
"""

import shlex
from collections.abc import Collection, Sequence
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.consistency import check_consistency
from fp8cli.core.inspection.dialect import recognise_dialect
from fp8cli.core.inspection.scale_values import check_scales
from fp8cli.core.inspection.survey import survey
from fp8cli.core.inspection.survey_files import examine_files
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import LocalFolder

CHOSEN: Final = frozenset({"config.shards", "module.embedding", "module.head", "module.router"})
"""Checks that only --targets, --ignore and --no-default-ignore can make fail."""

_NEVER_OURS: Final = frozenset({"activation.unused", "cache.missing", "cache.unused"})
"""Checks that warn, and that fail here."""

_UNFINISHED: Final = frozenset({"folder.unfinished", "folder.unfinished_download", "folder.unfinished_run"})


def pass_gate(folder: LocalFolder) -> tuple[Finding, ...]:
    """Examine a whole checkpoint that is not published yet, and return every finding.

    Raises BadInput with the first fault that was not chosen. Costs what `fp8 inspect` does: headers and scales.
    """
    seen = survey(folder)
    dialect = recognise_dialect(seen)
    found = (*seen.findings, *check_consistency(seen, dialect), *check_scales(seen, dialect)[1])
    findings = tuple(finding for finding in found if finding.check not in _UNFINISHED)
    faults = [finding for finding in findings if _is_fault(finding)]
    if faults:
        message = f"the result is not sound and is not published: {_words(faults)}"
        raise BadInput(message, hint=faults[0].remedy or "fp8 inspect MODEL --verify shows whether the source is sound")
    return findings


def refuse_damaged(folder: LocalFolder) -> tuple[Finding, ...]:
    """Examine a checkpoint that was made before, as `fp8 inspect` does, and return every finding.

    Raises BadInput with the first that failed. Costs what `fp8 inspect` does: headers and scales.
    """
    seen = survey(folder)
    dialect = recognise_dialect(seen)
    findings = (*seen.findings, *check_consistency(seen, dialect), *check_scales(seen, dialect)[1])
    faults = [finding for finding in findings if finding.status == "failed"]
    if faults:
        message = f"`{folder.label}` is damaged: {_words(faults)}"
        raise BadInput(message, hint=f"fp8 inspect {shlex.quote(folder.label)} shows all that is wrong with it")
    return findings


def refuse_broken_files(folder: LocalFolder, names: Collection[str], *, called: str | None = None) -> None:
    """Refuse files beside the weights that would be carried over broken: better before hours of work than after.

    Raises BadInput for one that is empty, is not what its name promises, or runs code when it is loaded. called: what
    the message calls a source whose files were carried over already.
    """
    sizes = {name: size for name, size in folder.files().items() if name in names}
    # What was carried over lies where an output grows, which is no news.
    news = frozenset() if called is None else _UNFINISHED
    found = examine_files(folder, sizes, already_read=())
    faults = [finding for finding in found if finding.status == "failed" and finding.check not in news]
    if faults:
        message = f"`{called or folder.label}` has files that cannot be carried over: {_words(faults)}"
        raise BadInput(message, hint=faults[0].remedy or "mend or remove the file, then run the command again")


def _is_fault(finding: Finding) -> bool:
    if finding.check in _NEVER_OURS:
        return finding.status in {"warning", "failed"}
    return finding.status == "failed" and finding.check not in CHOSEN


def _words(faults: Sequence[Finding]) -> str:
    more = f", and {len(faults) - 1:,} more such findings" if len(faults) > 1 else ""
    return f"{faults[0].found}{more}"
