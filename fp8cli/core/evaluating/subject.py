"""The checkpoint that is evaluated: its files on this machine, what it is, and what it is called in the runs folder.

For a server only its tokenizer matters: weights are then neither fetched nor fingerprinted, because nobody here can
tell which ones the server has.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from fp8cli.core.evaluating.fingerprint import fingerprint, stamp, templates_sha256, tokenizer_sha256
from fp8cli.core.inspection.declaration import Declaration
from fp8cli.core.inspection.declared_methods import MODELOPT_CONFIG, read_declaration
from fp8cli.core.inspection.default_checkpoint import find_checkpoint
from fp8cli.core.inspection.scale_names import FP8_DTYPES
from fp8cli.core.model.attention import Attention, read_attention
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint, read_json_object
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.quant_methods import recognise
from fp8cli.formats.run_record import ModelFacts
from fp8cli.formats.sources import resolve_files

BASE_LABEL: Final = "base"
FP8_LABEL: Final = "fp8"
OTHER_LABEL: Final = "quantized"
"""Of a checkpoint that is quantized, though not to FP8."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint, opened."""

    name: str
    """As the user named it."""
    place: LocalFolder | HubRepo
    checkpoint: Checkpoint
    commit: str | None
    """Of a Hub id."""
    served: bool
    """Whether a server has the weights."""
    full_hash: bool

    @property
    def path(self) -> Path | None:
        """The folder its weights are read from; None where they are a server's."""
        return None if self.served or isinstance(self.place, HubRepo) else self.place.path.absolute()

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is loaded from: a folder, or a Hub id."""
        return self.place.repo_id if isinstance(self.place, HubRepo) else str(self.place.path.absolute())

    @cached_property
    def declaration(self) -> Declaration | None:
        """What its configs say about its quantization."""
        beside = {}
        if MODELOPT_CONFIG in self.checkpoint.files:
            beside[MODELOPT_CONFIG] = read_json_object(self.place, MODELOPT_CONFIG)
        return read_declaration(self.checkpoint.config, beside)

    @cached_property
    def attention(self) -> Attention:
        """Its longest context and dtype among the rest."""
        return read_attention(self.checkpoint.config)

    @cached_property
    def quantization(self) -> str | None:
        """How it is quantized, in words; None if it is not."""
        said = self.declaration
        if said is not None:
            return ", ".join(dict.fromkeys(word for word in (said.scheme or said.words, said.name) if word))
        tensors = self.checkpoint.tensors.values()
        return recognise(
            self.checkpoint.config, self.checkpoint.side_files, ((each.name, each.dtype) for each in tensors)
        )

    @property
    def is_fp8(self) -> bool:
        """Whether its config or a tensor says FP8."""
        declared = self.declaration is not None and self.declaration.is_fp8
        return declared or any(tensor.dtype in FP8_DTYPES for tensor in self.checkpoint.tensors.values())

    @property
    def label(self) -> str:
        """What its runs are called unless the user says otherwise."""
        if self.is_fp8:
            return FP8_LABEL
        return BASE_LABEL if self.quantization is None else OTHER_LABEL

    @cached_property
    def tokenizer_sha256(self) -> str | None:
        """Identity of its tokenizer."""
        return tokenizer_sha256(self.place)

    @cached_property
    def templates_sha256(self) -> str:
        """Identity of its chat templates."""
        return templates_sha256(self.place)

    @cached_property
    def facts(self) -> ModelFacts:
        """What a record keeps of it."""
        local = None if self.path is None else LocalFolder(self.path)
        return ModelFacts(
            name=self.name,
            path=None if self.path is None else str(self.path),
            revision=self.commit,
            fingerprint=None if local is None else fingerprint(self.checkpoint, local, full=self.full_hash),
            fingerprint_of="nothing" if local is None else "all bytes" if self.full_hash else "samples",
            stamp=None if local is None else stamp(self.checkpoint, local),
            bytes_on_disk=self.checkpoint.weight_bytes,
            dtype=self.attention.dtype,
            quantization=self.quantization,
        )


def open_subject(
    name: str | None, revision: str | None, *, served: bool, full_hash: bool, download_bars: bool
) -> Subject:
    """Open a folder or a Hub id, which is downloaded first; None: the checkpoint here. Raises Fp8Error."""
    asked = str(find_checkpoint(Path(), command="eval")) if name is None else name
    place = resolve_files(asked, revision, for_what="evaluating")
    commit = None if isinstance(place, LocalFolder) else place.commit
    if isinstance(place, HubRepo) and not served:
        place = hub.download(place, progress=download_bars)
    return Subject(
        name=asked,
        place=place,
        checkpoint=open_checkpoint(place),
        commit=commit,
        served=served,
        full_hash=full_hash,
    )
