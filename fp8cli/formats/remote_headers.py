"""Headers of shards that lie elsewhere: some 256 KiB of each travel, several at a time, and each one once."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from fp8cli.errors import Fp8Error
from fp8cli.formats.complaints import Complain, Complaint
from fp8cli.formats.safetensors import LENGTH_BYTES, Header, header_length, parse_header

FIRST_BYTES: Final = 256 * 2**10
"""What the first request for a header asks for; headers of most shards fit, of the largest a second one follows."""

CONNECTIONS: Final = 8
"""Requests under way at a time."""

_SHARD: Final = re.compile(r"model[^/]*\.safetensors")

FetchHeader = Callable[[str, Complain], Header]


@dataclass(frozen=True)
class _Answered:
    """What came of fetching one header: itself or why not, and what there is to complain of."""

    outcome: Header | Fp8Error
    complaints: Sequence[Complaint]


@dataclass
class RemoteHeaders:
    """The headers of one checkpoint, as far as they were fetched."""

    _answered: dict[str, _Answered] = field(default_factory=dict)

    def get(self, name: str, files: Mapping[str, int], fetch_one: FetchHeader, complain: Complain) -> Header:
        """Return the header of one file. The first call fetches those of all shards among `files`."""
        if name not in self._answered:
            self.fetch([name, *(file for file in files if _SHARD.fullmatch(file))], fetch_one)
        answered = self._answered[name]
        for complaint in answered.complaints:
            complain(complaint)
        if isinstance(answered.outcome, Fp8Error):
            raise answered.outcome
        return answered.outcome

    def fetch(self, names: Sequence[str], fetch_one: FetchHeader) -> None:
        """Fetch several headers at a time, for `get` to return; what is wrong with one shows there."""
        wanted = [name for name in dict.fromkeys(names) if name not in self._answered]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = pool.map(lambda name: _try(name, fetch_one), wanted)
            self._answered.update(zip(wanted, answers, strict=True))


def fetch_header(fetch: Callable[[str, int, int], bytes], name: str, size: int, complain: Complain) -> Header:
    """Fetch and check one header. fetch: returns bytes [begin, end) of a file. size: of the file, in bytes."""
    text = fetch(name, 0, min(size, FIRST_BYTES))
    end = LENGTH_BYTES + header_length(text, size, name=name)
    if end > len(text):
        text += fetch(name, len(text), end)
    return parse_header(text[LENGTH_BYTES:end], size, name=name, complain=complain)


def _try(name: str, fetch_one: FetchHeader) -> _Answered:
    complaints: list[Complaint] = []
    try:
        return _Answered(fetch_one(name, complaints.append), complaints)
    except Fp8Error as problem:
        return _Answered(problem, complaints)
