"""Which checkpoint it was: numbers that change when the model or its tokenizer does, found in a fraction of a second.

    fingerprint        SHA-256 over configs, headers and sizes, and samples of every tensor (or all bytes)
    stamp              SHA-256 over names, sizes and times of change
    tokenizer_sha256   SHA-256 over what turns text into tokens

Of a tensor of at most WHOLE_BYTES every byte counts, so that one scale times four is seen; of a larger one, BLOCKS
blocks of BLOCK_BYTES, evenly spread. A change between the blocks shows in the stamp as long as nobody sets the clock
of the file back; `full` leaves nothing to that.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import CONFIG, Checkpoint, Folder, LocalFolder, read_json_object
from fp8cli.formats.safetensors import Header, TensorInfo

WHOLE_BYTES: Final = 64 * 2**10
BLOCK_BYTES: Final = 4 * 2**10
BLOCKS: Final = 4

_READERS: Final = 4
"""Files hashed at a time, where all bytes are."""

_CONFIGS: Final = (CONFIG, "generation_config.json", "hf_quant_config.json", "quantize_config.json")
"""Files beside the weights that decide how a model computes or generates; its own code, `*.py`, does too."""

_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)
_TOKENIZER_CONFIGS: Final = ("tokenizer_config.json", "special_tokens_map.json")
_TOKENIZER_EXTRA: Final = ".tiktoken"
_UNRELATED: Final = frozenset(
    {"chat_template", "backend", "is_local", "local_files_only", "name_or_path", "processor_class"}
    | {"tokenizer_file", "transformers_version", "auto_map"}
)
"""Keys of tokenizer_config.json that change no token: the template has a hash of its own."""

_TEMPLATES: Final = ("chat_template.jinja", "chat_template.json")
_TEMPLATE_FOLDER: Final = "additional_chat_templates/"


def fingerprint(checkpoint: Checkpoint, folder: LocalFolder, *, full: bool = False) -> str:
    """Return the SHA-256 of a checkpoint: of configs, headers, sizes, and samples of the tensors, or all bytes.

    Raises BadInput for a file that cannot be read or is cut short while it is.
    """
    total = hashlib.sha256(b"all bytes" if full else b"samples")
    for name in sorted(name for name in checkpoint.files if name in _CONFIGS or name.endswith(".py")):
        _add(total, name, folder.read(name))
    shards = [(shard.name, folder.resolve(shard.name), shard.header) for shard in checkpoint.shards]
    try:
        if full:
            with ThreadPoolExecutor(_READERS) as pool:
                digests = pool.map(_whole, (path for _, path, _ in shards))
                for (name, _, _), digest in zip(shards, digests, strict=True):
                    _add(total, name, digest)
        else:
            for name, path, header in shards:
                _add(total, name, _sampled(path, header))
    except OSError as problem:
        raise BadInput(f"`{problem.filename}` cannot be read: {problem.strerror or problem}") from problem
    return total.hexdigest()


def stamp(checkpoint: Checkpoint, folder: LocalFolder) -> str:
    """Return the SHA-256 of names, sizes and times of change of all files that a result depends on."""
    total = hashlib.sha256(b"stamp")
    for name in sorted({CONFIG, *checkpoint.side_files, *(shard.name for shard in checkpoint.shards)}):
        stat = folder.resolve(name).stat()
        _add(total, name, f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return total.hexdigest()


def tokenizer_sha256(folder: Folder) -> str | None:
    """Return the SHA-256 of what turns text into tokens, without what does not; None where there is no tokenizer."""
    files = folder.files()
    names = sorted(
        name for name in files if name in _TOKENIZER or ("/" not in name and name.endswith(_TOKENIZER_EXTRA))
    )
    if not names:
        return None
    total = hashlib.sha256(b"tokenizer")
    for name in names:
        _add(total, name, _read(folder, name))
    for name in (name for name in _TOKENIZER_CONFIGS if name in files):
        # Written anew by every tool in its own order, so it is the values that count.
        kept = {key: value for key, value in read_json_object(folder, name).items() if key not in _UNRELATED}
        _add(total, name, json.dumps(kept, sort_keys=True).encode())
    return total.hexdigest()


def templates_sha256(folder: Folder) -> str:
    """Return the SHA-256 of all chat templates of a checkpoint, of nothing where it has none."""
    files = folder.files()
    total = hashlib.sha256(b"templates")
    for name in sorted(name for name in files if name in _TEMPLATES or name.startswith(_TEMPLATE_FOLDER)):
        _add(total, name, _read(folder, name))
    if "tokenizer_config.json" in files:
        template = read_json_object(folder, "tokenizer_config.json").get("chat_template")
        _add(total, "tokenizer_config.json", json.dumps(template, sort_keys=True).encode())
    return total.hexdigest()


def _add(total: "hashlib._Hash", name: str, content: bytes) -> None:
    # Names and lengths too, so that no two lists of files read alike.
    total.update(f"{len(name)} {name} {len(content)} ".encode(errors="surrogateescape"))
    total.update(content)


def _read(folder: Folder, name: str) -> bytes:
    """Return a file of a tokenizer through its digest: the text itself may be tens of megabytes."""
    return hashlib.sha256(folder.read(name)).digest()


def _whole(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _sampled(path: Path, header: Header) -> bytes:
    digest = hashlib.sha256(f"{header.file_bytes}".encode())
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for begin, end in ((0, header.data_begin), *_samples(header.tensors)):
            piece = os.pread(descriptor, end - begin, begin)
            if len(piece) != end - begin:
                raise BadInput(f"`{path}` ends at byte {begin + len(piece):,}, before its header says")
            digest.update(piece)
    finally:
        os.close(descriptor)
    return digest.digest()


def _samples(tensors: tuple[TensorInfo, ...]) -> Iterator[tuple[int, int]]:
    """Yield the pieces to hash, first and one past the last byte; small tensors that touch are read as one."""
    begin = end = 0
    for tensor in tensors:
        if tensor.bytes <= WHOLE_BYTES and tensor.begin == end and tensor.end - begin <= WHOLE_BYTES:
            end = tensor.end
            continue
        if end > begin:
            yield begin, end
        begin = end = tensor.end
        if tensor.bytes <= WHOLE_BYTES:
            begin = tensor.begin
        else:
            step = (tensor.bytes - BLOCK_BYTES) // (BLOCKS - 1)
            yield from ((at, at + BLOCK_BYTES) for at in range(tensor.begin, tensor.end - BLOCK_BYTES + 1, step))
    if end > begin:
        yield begin, end
