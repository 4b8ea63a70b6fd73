"""Patience: what is asked again, after how long, and from which byte on."""

import threading
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats.patience import LONGEST_PAUSE, Patience, Stopped, seconds_of

DATA = bytes(range(256)) * 40


class Clock(threading.Event):
    """Nobody sleeps here: it is written down for how long they would."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


class Server:
    """Knows its own errors: those that pass, and those for which it says when."""

    def is_passing(self, problem: BaseException) -> bool:
        return isinstance(problem, ConnectionError)

    def pause_asked(self, problem: BaseException) -> float | None:
        return problem.args[0] if problem.args and isinstance(problem.args[0], float) else None

    def explain(self, problem: BaseException) -> Fp8Error:
        return CannotRun(f"the server says {problem!r}")


class Torn:
    """A file that breaks off after each of these many bytes, then comes whole."""

    def __init__(self, *lengths: int | Exception) -> None:
        self.lengths, self.asked = list(lengths), list[int]()

    def __call__(self, at: int) -> Generator[bytes]:
        self.asked.append(at)
        step = self.lengths.pop(0) if self.lengths else len(DATA)
        if isinstance(step, Exception):
            raise step
        yield DATA[at : at + step]
        if at + step < len(DATA):
            raise ConnectionResetError


def read(patience: Patience, torn: Torn) -> bytes:
    data = bytearray()

    def take(at: int, chunk: bytes) -> None:
        assert at == len(data)
        data.extend(chunk)

    assert patience.read(torn, 0, len(DATA), take) == len(DATA)
    return bytes(data)


def test_it_goes_on_at_the_byte_where_it_broke_however_often() -> None:
    clock, torn = Clock(), Torn(*[100] * 50)
    patience = Patience(Server(), clock, pauses=(1.0, 2.0))
    assert read(patience, torn) == DATA
    assert torn.asked == list(range(0, 5_001, 100))
    assert patience.asked_again == 50
    # Whenever something came, the pauses begin anew.
    assert set(clock.waits) == {1.0}


def test_where_nothing_comes_the_pauses_grow_and_end() -> None:
    clock = Clock()
    with pytest.raises(CannotRun, match="the server says ConnectionResetError"):
        read(Patience(Server(), clock, pauses=(1.0, 2.0, 4.0)), Torn(*[ConnectionResetError()] * 9))
    assert clock.waits == [1.0, 2.0, 4.0]


def test_an_error_that_does_not_pass_is_told_at_once() -> None:
    clock, torn = Clock(), Torn(PermissionError("no"))
    with pytest.raises(CannotRun, match="the server says PermissionError"):
        read(Patience(Server(), clock), torn)
    assert (torn.asked, clock.waits) == ([0], [])
    with pytest.raises(BadInput, match="changed"):
        read(Patience(Server(), clock), Torn(BadInput("it was changed")))


def test_a_server_that_says_when_is_left_alone_until_then_by_all() -> None:
    clock, patience = Clock(), Patience(Server(), Clock())
    patience = Patience(Server(), clock, pauses=(0.0,))
    assert read(patience, Torn(ConnectionError(0.05))) == DATA
    assert 0.0 < clock.waits[0] <= 0.05
    with pytest.raises(CannotRun, match="asks to be left alone for 86,400 seconds"):
        read(patience, Torn(ConnectionError(86_400.0)))
    assert LONGEST_PAUSE < 86_400


def test_a_file_that_ends_before_says_how_far_it_came() -> None:
    def short(at: int) -> Generator[bytes]:
        yield DATA[at:500]

    got = Patience(Server(), Clock(), pauses=(1.0, 1.0)).read(short, 0, 1_000, lambda *_: None)
    assert got == 500


def test_more_than_was_asked_for_is_not_taken() -> None:
    data = bytearray()

    def generous(at: int) -> Generator[bytes]:
        yield DATA[at:]

    assert Patience(Server()).read(generous, 10, 20, lambda _, chunk: data.extend(chunk)) == 10
    assert bytes(data) == DATA[10:20]


def test_what_the_taker_raises_is_the_takers() -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space")

    torn = Torn()
    with pytest.raises(OSError, match="no space"):
        Patience(Server()).read(torn, 0, 10, full)
    assert torn.asked == [0]


def test_who_is_told_to_stop_neither_waits_nor_asks() -> None:
    stopped, torn = threading.Event(), Torn()
    stopped.set()
    with pytest.raises(Stopped):
        Patience(Server(), stopped).read(torn, 0, 10, lambda *_: None)
    assert torn.asked == []


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), (None, None), ("", None)]
)
def test_retry_after_is_seconds(header: str | None, seconds: float | None) -> None:
    assert seconds_of(header) == seconds


def test_or_a_date() -> None:
    told = seconds_of(format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True))
    assert told is not None
    assert 90 < told <= 100
