"""Whether a checkpoint agrees with itself: tensors, scales, config and architecture, each against the others.

Every check that found nothing wrong is one finding too, and what could not be checked says why. Headers and configs
are enough for all of it; the values of scales are for core.inspection.scale_values.
"""

from dataclasses import replace
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.activation_checks import check_activation_scales, check_cache_scales
from fp8cli.core.inspection.anatomy import Anatomy, dissect
from fp8cli.core.inspection.architecture_checks import check_architecture
from fp8cli.core.inspection.config_checks import check_declaration, check_modules
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.scale_checks import check_pairs
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.inspection.verdicts import not_checked

_BY_ROLE: Final = frozenset({"config.uncovered", "config.shards", "module.embedding", "module.head", "module.router"})
"""Checks that depend on which modules are an nn.Linear."""
_BY_PRESENCE: Final = frozenset(
    {
        "activation.missing",
        "cache.missing",
        "mtp.missing",
        "scale.missing",
        "scale.orphan",
        "tensor.missing",
        "tensor.none",
    }
)
"""Checks that say that something is not there."""
_UNREAD: Final = frozenset({("file.size", "not checked"), ("index.missing_shard", "failed")})
"""Findings of a survey that say that weight files could not be read, or are not there."""


def check_consistency(survey: Survey, dialect: Dialect, anatomy: Anatomy | None = None) -> tuple[Finding, ...]:
    """Hold everything against everything; pass the anatomy if it is there already."""
    if not survey.tensors:
        return (not_checked("tensors", "no tensor of it can be read, so nothing can be held against the config"),)
    anatomy = anatomy or dissect(survey, dialect)
    findings = (
        *_recognised(dialect),
        *check_declaration(survey, dialect),
        *check_pairs(survey, dialect),
        *check_activation_scales(survey, dialect),
        *check_cache_scales(survey, dialect),
        *check_modules(dialect, anatomy),
        *check_architecture(survey, anatomy),
    )
    if not anatomy.is_known:
        findings = tuple(_soften(finding) for finding in findings)
    return tuple(_doubt(finding) for finding in findings) if _has_unread_weights(survey) else findings


def _recognised(dialect: Dialect) -> tuple[Finding, ...]:
    declaration = dialect.declaration
    if declaration is None or declaration.is_known:
        return ()
    reason = f"what `{declaration.name}` asks of its tensors is not known here, or not all of it"
    return (not_checked("config.method", reason),)


def _soften(finding: Finding) -> Finding:
    """A verdict that rests on guessed roles is a warning."""
    return replace(finding, status="warning") if finding.check in _BY_ROLE and finding.status == "failed" else finding


def _has_unread_weights(survey: Survey) -> bool:
    """Whether tensors may lie where nobody could look; the findings about files say where."""
    return any((finding.check, finding.status) in _UNREAD for finding in survey.findings)


def _doubt(finding: Finding) -> Finding:
    """What is missing may lie in a file that cannot be read."""
    if finding.check not in _BY_PRESENCE or finding.status in {"passed", "not checked"}:
        return finding
    found = f"{finding.found}, or lies in a weight file that cannot be read"
    return replace(
        finding, status="not checked", found=found, consequence=None, remedy="see what is wrong with the files"
    )
