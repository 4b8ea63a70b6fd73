"""What `fp8 verify` found: a row for every file, then what differs, and the hash that stands for all."""

from collections.abc import Iterator, Sequence
from typing import Final

from fp8cli.commands.verify import VerifyReport
from fp8cli.core.findings import Finding
from fp8cli.core.findings import Status as Outcome
from fp8cli.core.verifying.verification import FileVerdict, Status
from fp8cli.render.console import Output
from fp8cli.render.sections import Findings, Judged, Section, show_sections
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, size

_COLUMNS: Final = (
    Column(title="file", shortens=True),
    Column(title="verdict"),
    Column(title="bytes", right=True, rank=1),
    Column(title="SHA-256", rank=2),
)
_SHOWN_DIGITS: Final = 12
_OUTCOMES: Final[dict[Status, Outcome]] = {
    "matches": "passed",
    "missing": "failed",
    "extra": "failed",
    "other size": "failed",
    "other bytes": "failed",
    "unreadable": "not checked",
    "not recorded": "not checked",
}


def show(report: VerifyReport, output: Output) -> None:
    """Print a report; with `output.json` it goes out as one document."""
    if output.json:
        output.document("verify", report, exit_code=report.exit_code)
        return
    show_sections(sections(report), output)


def sections(report: VerifyReport) -> tuple[Section, ...]:
    """Cut a report into sections; the verdict comes last, where a terminal ends."""
    plan = report.plan
    tools = ", ".join(f"{name} {version}" for name, version in report.tools.items())
    commit = "" if report.source_commit is None else f" at commit {report.source_commit}"
    parts = [
        Section(
            title=None,
            parts=(
                report.path,
                f"{plan.made}: {plan.words}",
                f"made from {report.source_name}{commit} by fp8 {plan.command}, with {tools}",
            ),
        ),
        Section(title=None, parts=(_table(report.files), *_differences(report.files))),
    ]
    if report.source is not None:
        title = f"its source, {report.source.path}"
        parts.append(Section(title=title, parts=(_table(report.source.files), *_differences(report.source.files))))
    parts.append(Section(title=None, parts=(f"{report.provenance_sha256}  fp8.json", _verdict(report))))
    return tuple(parts)


def _table(files: Sequence[FileVerdict]) -> Table:
    return Table(columns=_COLUMNS, rows=tuple(map(_cells, files)))


def _cells(verdict: FileVerdict) -> tuple[str, ...]:
    return (
        verdict.name,
        verdict.status,
        "" if verdict.bytes is None else count(verdict.bytes),
        "" if verdict.sha256 is None else f"{verdict.sha256[:_SHOWN_DIGITS]}…",
    )


def _differences(files: Sequence[FileVerdict]) -> tuple[Findings, ...]:
    findings = [_finding(verdict) for verdict in files if verdict.status not in {"matches", "not recorded"}]
    findings += _about_unrecorded(sum(verdict.status == "not recorded" for verdict in files))
    return (Findings(findings=tuple(findings), all_passed=True),) if findings else ()


def _about_unrecorded(files: int) -> Iterator[Finding]:
    """One finding for all of them: where there is one, it is most often every file."""
    if files:
        found = f"{count(files)} of their size, and no SHA-256 was computed when the checkpoint was made"
        yield Finding(check="not recorded", status="not checked", subject=None, found=found, count=files)


def _finding(verdict: FileVerdict) -> Finding:
    return Finding(
        check=verdict.status, status=_OUTCOMES[verdict.status], subject=verdict.name, found=_sentence(verdict)
    )


def _sentence(verdict: FileVerdict) -> str:
    recorded, found = verdict.recorded_bytes or 0, verdict.bytes or 0
    match verdict.status:
        case "missing":
            return "fp8.json names it, and it is not there"
        case "extra":
            return "it is there, and fp8.json does not name it"
        case "other size":
            return f"it has {count(found)} bytes, and fp8.json says {count(recorded)}"
        case "other bytes":
            theirs, its = verdict.recorded_sha256 or "", verdict.sha256 or ""
            return f"its SHA-256 is {its[:_SHOWN_DIGITS]}…, and fp8.json says {theirs[:_SHOWN_DIGITS]}…"
        case _:
            return verdict.why or "it could not be read"


def _verdict(report: VerifyReport) -> Judged:
    files = (*report.files, *(() if report.source is None else report.source.files))
    sound = sum(verdict.status == "matches" for verdict in files)
    of = f"{count(sound)} of {count(len(files))} file{'' if len(files) == 1 else 's'}"
    told = f"{of} as fp8.json says; {size(report.bytes_read)} read"
    match report.verdict:
        case "matches":
            return Judged(status="passed", word="matches", text=told)
        case "differs":
            return Judged(status="failed", word="differs", text=told)
        case "not known":
            return Judged(status="not checked", word="not known", text=told)
