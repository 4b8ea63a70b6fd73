"""What a pickle would run when it is loaded, read from its opcodes: nothing is ever loaded or run.

A pickle is a small program. It can only call what it names, by `GLOBAL` with the name in the opcode or by
`STACK_GLOBAL` with the name in two strings pushed before. A state dict names a handful of functions that rebuild
tensors; anything else is code that a weight file has no business to run. A name that is put together so that it
cannot be told from the opcodes alone counts as unknown, which is the opposite of harmless.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

MAX_PICKLE_BYTES: Final = 2 * 2**20
"""As much of a program is read. One that is longer breaks off there, and is said not to be whole."""

UNKNOWN: Final = "something whose name cannot be told"

_ZIP: Final = b"PK\x03\x04"
_PROTO: Final = b"\x80"
_OLD_TORCH_PICKLES: Final = 5
"""Before zip archives, torch wrote five pickles one after the other, then the numbers."""

_HARMLESS: Final = frozenset(
    """
    _codecs.encode collections.OrderedDict collections.defaultdict copyreg._reconstructor numpy.dtype numpy.ndarray
    numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar numpy._core.multiarray._reconstruct
    numpy._core.multiarray.scalar torch.Size torch.Tensor torch.device torch.dtype torch.nn.parameter.Parameter
    torch._tensor._rebuild_from_type_v2 torch.serialization._get_layout torch.storage.TypedStorage
    torch.storage.UntypedStorage
    """.split()
)
_HARMLESS_BUILTINS: Final = frozenset(
    "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple".split()
)
_HARMLESS_TORCH: Final = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.\w+Storage|torch\.(b?float|u?int|qu?int|complex)\d\w*"
)

# Modules that reach the system, other files, the network or the interpreter itself. `posix` and `nt` are what `os`
# calls itself in a pickle.
_DANGEROUS: Final = frozenset(
    """
    __builtin__ _pickle asyncio builtins code codeop commands ctypes ftplib functools http importlib io marshal
    multiprocessing operator os pdb pickle pip platform profile pty pydoc requests runpy shutil signal site
    smtplib socket subprocess sys tempfile threading timeit types urllib webbrowser zipimport
    """.split()
)
_SYSTEM_NAMES: Final = ("posix", "nt")


@dataclass(frozen=True, kw_only=True)
class PickleCalls:
    """What the pickles of a file name beyond what rebuilds tensors."""

    dangerous: tuple[str, ...]
    """Reaches the system or the interpreter, or cannot be told."""
    other: tuple[str, ...]
    """Classes and functions of other packages: loading runs their code."""


def read_calls(path: Path) -> PickleCalls:
    """Read what loading the file at `path` would call. Raises ValueError when that cannot be found out, with why.

    A program that breaks off has run by then as far as it goes, so what it names before that counts.
    """
    names: dict[str, None] = {}
    broken: Exception | None = None
    try:
        with path.open("rb") as file:
            # As torch.load decides, which does not look for the directory at the end of an archive.
            read = _archived if file.read(len(_ZIP)) == _ZIP else _bare
            file.seek(0)
            for name in read(file):
                names[name] = None
    except Exception as problem:  # noqa: BLE001 - pickletools and zipfile raise anything at bytes from strangers
        broken = problem
    calls = PickleCalls(
        dangerous=tuple(_spoken(name) for name in names if _is_dangerous(name)),
        other=tuple(name for name in names if not _is_dangerous(name) and not _is_harmless(name)),
    )
    if broken is not None and not calls.dangerous:
        message = f"it is no whole pickle: {broken}"
        raise ValueError(message) from broken
    return calls


def _archived(file: IO[bytes]) -> Iterator[str]:
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
        if not members:
            message = "a zip archive without one"
            raise ValueError(message)
        for member in members:
            with archive.open(member) as opened:
                yield from _names(_limited(opened))


def _bare(file: IO[bytes]) -> Iterator[str]:
    stream = _limited(file)
    for number in range(_OLD_TORCH_PICKLES):
        if number > 0 and not _goes_on(stream):
            return
        yield from _names(stream)


def _limited(file: IO[bytes]) -> io.BytesIO:
    # In an old torch file the numbers follow the program, so a longer file is no reason not to look.
    return io.BytesIO(file.read(MAX_PICKLE_BYTES))


def _goes_on(stream: io.BytesIO) -> bool:
    following = stream.read(1)
    stream.seek(-len(following), io.SEEK_CUR)
    return following == _PROTO


def _names(stream: io.BytesIO) -> Iterator[str]:
    """Yield what the pickle at the stream's position names, as `module.name`."""
    memo: dict[object, str | None] = {}
    below: str | None = None
    top: str | None = None
    for opcode, argument, _ in pickletools.genops(stream):
        pushed: str | None = None
        if opcode.name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":
            yield UNKNOWN if below is None or top is None else f"{below}.{top}"
        elif opcode.name in {"EXT1", "EXT2", "EXT4"}:
            yield UNKNOWN
        elif opcode.name in {"PROTO", "FRAME"}:
            continue
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = top
            continue
        elif opcode.name.endswith("PUT"):
            memo[argument] = top
            continue
        elif opcode.name.endswith("GET"):
            pushed = memo.get(argument)
        elif isinstance(argument, str) and opcode.name.endswith(("STRING", "UNICODE", "UNICODE8")):
            pushed = argument
        # Whatever else happens to the stack, its top is not known to be a text any more.
        below, top = top, pushed


def _is_harmless(name: str) -> bool:
    module, _, member = name.rpartition(".")
    if module in {"builtins", "__builtin__"}:
        return member in _HARMLESS_BUILTINS
    return name in _HARMLESS or _HARMLESS_TORCH.fullmatch(name) is not None


def _is_dangerous(name: str) -> bool:
    root = name.partition(".")[0]
    return name == UNKNOWN or (root in (*_DANGEROUS, *_SYSTEM_NAMES) and not _is_harmless(name))


def _spoken(name: str) -> str:
    """Return the name as a programmer writes it: in a pickle, `os.system` is `posix.system`."""
    root, dot, rest = name.partition(".")
    return f"os{dot}{rest}" if root in _SYSTEM_NAMES else name
