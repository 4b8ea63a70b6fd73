"""The key of a result: SHA-256 over everything that decides it. Equal keys, equal results: one answers for another.

lm-eval's own caches are keyed by less, and return the numbers of another model, or of another version of a task.
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.evaluating.environment import UNIMPORTANT
from fp8cli.core.evaluating.settings import Chosen
from fp8cli.core.evaluating.subject import Subject
from fp8cli.core.evaluating.task_sources import ContentHashes, name_in_file
from fp8cli.formats.run_record import RunRecord
from fp8cli.worker.protocol import Backend, FidelityJob

KEY_VERSION: Final = 1
"""Raised when the worker changes how it comes to a result."""

_SHOWING: Final = ("safe", "python", "versions", "environment")
"""Fields of Settings that are told in another form, or that no result depends on."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Keys of one evaluation."""

    base: str
    """Over all but the task."""
    contents: ContentHashes
    """Of what this machine holds of the tasks."""

    def of(self, asked: str, task: str) -> str:
        """Return the key of a task that came of the name `asked`."""
        return _digest([self.base, asked, self.contents.of(asked), task])

    def of_run(self, names: Sequence[str], fidelity: str) -> str:
        """Return the key of a run of several names, for the folder it grows in."""
        return _digest([self.base, [[name, self.contents.of(name)] for name in names], fidelity])


def make_keys(subject: Subject, chosen: Chosen, hardware: Sequence[str], contents: ContentHashes) -> Keys:
    """Make the keys. hardware: names of the GPUs that take part."""
    settings = chosen.settings
    plain = {name: value for name, value in vars(settings).items() if name not in _SHOWING}
    if settings.sample is None:
        del plain["sample_seed"]
    model = subject.facts
    decides: dict[str, object] = {
        "version": KEY_VERSION,
        "fingerprint": model.fingerprint,
        # A sample of the bytes is one of the checkpoint only while nobody has written to it.
        "stamp": model.stamp if model.fingerprint_of == "samples" else None,
        "tokenizer": subject.tokenizer_sha256,
        "templates": subject.templates_sha256 if settings.chat_template else None,
        "settings": plain,
        "versions": {
            name: version for name, version in settings.versions.items() if _takes_part(name, settings.backend)
        },
        "environment": {key: value for key, value in settings.environment.items() if key not in UNIMPORTANT},
        "device": chosen.device,
        "hardware": list(hardware),
    }
    if chosen.simulation is not None:
        decides["simulation"] = chosen.simulation.deciding
    return Keys(base=_digest(decides), contents=contents)


def fidelity_key(job: FidelityJob | None) -> str:
    """Return the key of what fidelity was asked for; of the user's texts the content counts."""
    if job is None:
        return ""
    texts = None if job.texts is None else hashlib.sha256(Path(job.texts).read_bytes()).hexdigest()
    return _digest([texts, job.positions, job.budget_bytes, job.top_k])


def answered_by(record: RunRecord, keys: Keys, name: str) -> tuple[str, ...]:
    """Return the tasks of a record that answer for the name; none if it answers not or other settings were in force."""
    return tuple(task for task, facts in record.tasks.items() if facts.key == keys.of(name, task))


def origins(names: Sequence[str], tasks: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
    """Return for each task the name that it came of: its own, its group's, a glob's, a file's.

    What is left came of tags or of files of groups; where these are several, nobody can tell which, and all of their
    names together, joined by commas, stand for them.
    """
    found: dict[str, str] = {}
    for name in names:
        members = {name, *groups.get(name, ())}
        if (defined := name_in_file(name)) is not None:
            members.add(defined)
        for task in tasks:
            if task in members or ("*" in name and fnmatch.fnmatchcase(task, name)):
                found.setdefault(task, name)
    used = set(found.values())
    rest = ",".join(name for name in names if name not in used)
    return {task: found.get(task, rest) for task in tasks}


def _takes_part(package: str, backend: Backend) -> bool:
    """Whether the version of a package can change what a backend answers."""
    if backend == "server":
        return package in {"lm_eval", "transformers", "datasets"}
    return package != "vllm" or backend == "vllm"


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()
