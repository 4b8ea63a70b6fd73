"""A checkpoint as it lies there, damaged or not: all that can be read of it, and all that is wrong with its files.

Where `open_checkpoint` refuses at the first fault, a survey goes on. It reads listing, config, index and headers,
the first bytes of side files, and no weight. A damaged file hides no other one, and what could not be looked at is
said to be "not checked". The checks themselves are those of formats/, which also refuse (see formats.complaints).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.survey_files import examine_files
from fp8cli.core.inspection.survey_weights import StoredTensor, examine_weights, read_json
from fp8cli.core.inspection.verdicts import judge, not_checked, passed
from fp8cli.formats.checkpoint import CONFIG, LocalFile, LocalFolder
from fp8cli.formats.complaints import Complaint
from fp8cli.formats.ranges import RangeReader, open_ranges
from fp8cli.formats.safetensors import Header
from fp8cli.formats.shard_index import INDEX
from fp8cli.formats.sources import Source

__all__ = ["StoredTensor", "Survey", "survey"]

SIDE_CONFIGS: Final = (
    "generation_config.json",
    "hf_quant_config.json",
    "params.json",
    "quant_config.json",
    "quantize_config.json",
)
"""Small files beside config.json that say how a checkpoint is quantized or meant to be run."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What lies in a checkpoint and what is wrong with its files. Tensors may lie beyond the end of a cut file."""

    label: str
    """What messages call the checkpoint: its path or Hub id."""
    files: Mapping[str, int]
    """Every file with its size in bytes."""
    config: Mapping[str, object] | None
    """None: there is no config.json, or it cannot be read; a finding says which."""
    side_configs: Mapping[str, Mapping[str, object]]
    """Those of SIDE_CONFIGS that are there and can be read."""
    headers: Mapping[str, Header]
    """The weight files whose header could be read, also those that vLLM would not load."""
    tensors: Mapping[str, StoredTensor]
    """What vLLM would load, file by file; of a name that is stored twice the copy that it keeps."""
    findings: tuple[Finding, ...]
    reader: RangeReader

    def holds(self, tensor: StoredTensor) -> bool:
        """Whether all bytes of `tensor` are there: its file may have been cut short."""
        return tensor.info.end <= self.headers[tensor.file].file_bytes


def survey(source: Source) -> Survey:
    """Look at everything. Damage becomes findings; raises Fp8Error only if there is nothing that can be listed."""
    complaints: list[Complaint] = []
    files = source.list_files(complaints.append) if isinstance(source, LocalFolder) else source.files()
    config, about_config = _read_config(source, files)
    side_configs, about_side_configs = _read_side_configs(source, files)
    weights = examine_weights(source, files)
    return Survey(
        label=source.label,
        files=files,
        config=config,
        side_configs=side_configs,
        headers=weights.headers,
        tensors=weights.tensors,
        findings=(
            *about_config,
            *about_side_configs,
            *weights.findings,
            *judge(complaints),
            *examine_files(source, files, already_read={CONFIG, INDEX, *SIDE_CONFIGS}),
        ),
        reader=open_ranges(source),
    )


def _read_config(source: Source, files: Mapping[str, int]) -> tuple[Mapping[str, object] | None, tuple[Finding, ...]]:
    if isinstance(source, LocalFile):
        return None, (not_checked("config", f"`{source.label}` is looked at by itself, without a `{CONFIG}`"),)
    if CONFIG not in files:
        words = f"`{source.label}` has no `{CONFIG}`"
        hint = "point to the folder of a Hugging Face checkpoint, with config.json beside the weights"
        return None, judge([Complaint(check="config.missing", words=words, hint=hint, files=(CONFIG,))])
    config, findings = read_json(source, CONFIG, "config.json")
    return config, findings or (passed("config", f"`{CONFIG}` is a JSON object"),)


def _read_side_configs(
    source: Source, files: Mapping[str, int]
) -> tuple[Mapping[str, Mapping[str, object]], tuple[Finding, ...]]:
    """Read those of SIDE_CONFIGS that are there."""
    configs: dict[str, Mapping[str, object]] = {}
    faults: list[Finding] = []
    for name in SIDE_CONFIGS if not isinstance(source, LocalFile) else ():
        if name in files:
            value, findings = read_json(source, name, "file.json")
            faults += findings
            if value is not None:
                configs[name] = value
    named = ", ".join(f"`{name}`" for name in configs)
    sound = (passed("config.side", f"{named}: valid JSON", count=len(configs)),) if configs and not faults else ()
    return configs, (*faults, *sound)
