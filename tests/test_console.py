"""What a terminal, a pipe, an old encoding and a lost reader get; and what a stranger's names cannot do."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import TextIO

import pytest

from fp8cli import __version__
from fp8cli.errors import BadInput, ExitCode, UsageError, printable
from fp8cli.render.console import Channel, Output
from fp8cli.render.document import to_json
from fp8cli.render.table import Column, Table, shorten
from fp8cli.render.units import count, gb, gib, mb, percent

PLANETS = Table(
    columns=(
        Column(title="planet", shortens=True),
        Column(title="moons", right=True, rank=1),
        Column(title="km", right=True),
    ),
    rows=(("mercury", "0", "4879"), ("the red planet, called mars", "2", "6779")),
    total=("both", "2", "11658"),
)


def on_paper(table: Table, *, width: int | None = None, unicode: bool = True) -> str:
    paper = StringIO()
    Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=unicode).table(table)
    return paper.getvalue()


@dataclass
class Terminal:
    """The two ends of a real pseudo-terminal."""

    stream: TextIO
    master: int

    def read(self) -> str:
        """Close the near end and return all that arrived at the far one."""
        self.stream.close()
        arrived = b""
        # Linux says EIO, macOS end of file, when the near end is closed and all is read.
        with contextlib.suppress(OSError):
            while part := os.read(self.master, 65536):
                arrived += part
        return arrived.decode().replace("\r\n", "\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Open a terminal of 24 lines and 50 columns."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 50))
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        yield Terminal(stream, master)
    os.close(master)


# Tables


def test_a_pipe_gets_one_bare_row_a_line_however_long() -> None:
    assert on_paper(PLANETS) == (
        "planet                       moons     km\n"
        "mercury                          0   4879\n"
        "the red planet, called mars      2   6779\n"
        "both                             2  11658\n"
    )
    name = "x" * 5000
    assert on_paper(Table(columns=(Column(title="name"),), rows=((name,),))) == f"name\n{name}\n"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            47,
            """\
╭─────────────────────────────┬───────┬───────╮
│ planet                      │ moons │    km │
├─────────────────────────────┼───────┼───────┤
│ mercury                     │     0 │  4879 │
│ the red planet, called mars │     2 │  6779 │
├─────────────────────────────┼───────┼───────┤
│ both                        │     2 │ 11658 │
╰─────────────────────────────┴───────┴───────╯
""",
        ),
        (
            46,
            """\
╭─────────────────────────────┬───────╮
│ planet                      │    km │
├─────────────────────────────┼───────┤
│ mercury                     │  4879 │
│ the red planet, called mars │  6779 │
├─────────────────────────────┼───────┤
│ both                        │ 11658 │
╰─────────────────────────────┴───────╯
""",
        ),
        (
            26,
            """\
╭────────────────┬───────╮
│ planet         │    km │
├────────────────┼───────┤
│ mercury        │  4879 │
│ the …lled mars │  6779 │
├────────────────┼───────┤
│ both           │ 11658 │
╰────────────────┴───────╯
""",
        ),
    ],
)
def test_a_terminal_gets_a_box_that_fits(width: int, expected: str) -> None:
    assert on_paper(PLANETS, width=width) == expected


def test_no_digit_is_cut_off_however_narrow_the_terminal() -> None:
    text = on_paper(PLANETS, width=5)
    assert all(number in text for number in ("4879", "6779", "11658"))


def test_an_ascii_terminal_gets_an_ascii_box() -> None:
    table = Table(
        columns=(Column(title="name", shortens=True), Column(title="ok?")),
        rows=(("down_proj ×32", "✓"), ("中" * 20, "✗")),
    )
    assert on_paper(table, width=30, unicode=False) == (
        """\
+----------------------------+
| name                | ok?  |
|---------------------+------|
| down_proj x32       | ok   |
| \\u4e2...u4e2d\\u4e2d | FAIL |
+----------------------------+
"""
    )


def test_an_empty_table_is_its_titles() -> None:
    table = Table(columns=(Column(title="tensor"), Column(title="dtype")), rows=())
    assert on_paper(table) == "tensor  dtype\n"


def test_wide_characters_keep_columns_straight() -> None:
    table = Table(columns=(Column(title="name"), Column(title="n", right=True)), rows=(("模型", "1"), ("model", "20")))
    assert on_paper(table) == "name    n\n模型    1\nmodel  20\n"


@pytest.mark.parametrize(
    ("width", "expected"),
    [(99, "model.layers.0"), (14, "model.layers.0"), (10, "mod…yers.0"), (5, "m…s.0")],
)
def test_a_name_is_shortened_in_its_middle(width: int, expected: str) -> None:
    assert shorten("model.layers.0", width) == expected


# Lines


def test_a_terminal_gets_lines_broken_between_words_and_commands_whole(terminal: Terminal) -> None:
    output = Output(out=Channel.of(terminal.stream), err=Channel.of(terminal.stream))
    output.line("one two three four five six seven eight nine ten eleven")
    output.note("fp8 inspect /a/very/long/path/that/goes/over/the/edge/of/it")
    assert terminal.read() == (
        "one two three four five six seven eight nine ten \neleven\n"
        "fp8 inspect /a/very/long/path/that/goes/over/the/edge/of/it\n"
    )


def test_columns_overrules_the_width_of_the_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Channel.of(terminal.stream).width == 50
    monkeypatch.setenv("COLUMNS", "132")
    assert Channel.of(terminal.stream).width == 132
    monkeypatch.setenv("COLUMNS", "wide")
    assert Channel.of(terminal.stream).width == 50


def test_a_terminal_gets_colour(terminal: Terminal) -> None:
    Channel.of(terminal.stream).line("it broke", label="error: ", style="bold red")
    assert terminal.read() == "\x1b[1;31merror: \x1b[0mit broke\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_get_no_escape_at_all(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    channel = Channel.of(terminal.stream)
    channel.line("it broke", label="error: ", style="bold red")
    channel.table(PLANETS)
    assert "\x1b" not in terminal.read()


def test_the_option_overrules_the_environment(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    Channel.of(terminal.stream, color=False).line("plain", style="bold")
    monkeypatch.setenv("NO_COLOR", "1")
    Channel.of(terminal.stream, color=True).line("bold", style="bold")
    assert terminal.read() == "plain\n\x1b[1mbold\x1b[0m\n"
    paper = StringIO()
    Channel.of(paper, color=True).line("a line for a pipe that is longer than any terminal " * 3, style="bold")
    assert paper.getvalue() == f"\x1b[1m{'a line for a pipe that is longer than any terminal ' * 3}\x1b[0m\n"


def test_force_color_does_not_reach_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    paper = StringIO()
    Channel.of(paper).line("plain", style="bold")
    assert paper.getvalue() == "plain\n"


# Names from strangers

HOSTILE = "[bold red]a[/] \x1b[31mb\r\nc\u202ed\ud800\x07:smile:"
HARMLESS = "[bold red]a[/] \\x1b[31mb\\r\\nc\\u202ed\\ud800\\x07:smile:"


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable(HOSTILE) == HARMLESS
    assert printable("模型 ×32 ✓ café") == "模型 ×32 ✓ café"


@pytest.mark.parametrize("width", [None, 120])
def test_a_hostile_name_reaches_no_terminal(width: int | None) -> None:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=True)
    channel.line(HOSTILE, label="error: ")
    channel.table(Table(columns=(Column(title="name"),), rows=((HOSTILE,),), total=(HOSTILE,)))
    text = paper.getvalue()
    assert text.count(HARMLESS) == 3
    assert not set("\x1b\r\x07\u202e\ud800") & set(text)


# Encodings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_other_encodings_get_words_for_symbols_and_escapes_for_the_rest(encoding: str) -> None:
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding)
    Channel.of(stream).line("✓ 128×128 → 中 …")
    assert raw.getvalue() == b"ok 128x128 -> \\u4e2d ...\n"


def test_utf8_gets_everything() -> None:
    raw = BytesIO()
    stream = TextIOWrapper(raw, "utf-8")
    Channel.of(stream).line("✓ 128×128 → 中 …")
    assert raw.getvalue().decode() == "✓ 128×128 → 中 …\n"


# Streams


def two_papers(*, as_json: bool = False, quiet: bool = False) -> tuple[Output, StringIO, StringIO]:
    out, err = StringIO(), StringIO()
    return Output(out=Channel.of(out), err=Channel.of(err), json=as_json, quiet=quiet), out, err


def test_results_go_to_stdout_and_talk_to_stderr() -> None:
    output, out, err = two_papers()
    output.line("result")
    output.table(Table(columns=(Column(title="n"),), rows=(("1",),)))
    output.note("by the way")
    output.warning("mind the gap")
    assert (out.getvalue(), err.getvalue()) == ("result\nn\n1\n", "by the way\nwarning: mind the gap\n")


def test_quiet_silences_notes_only() -> None:
    output, out, err = two_papers(quiet=True)
    output.line("result")
    output.note("by the way")
    output.warning("mind the gap")
    output.error(BadInput("it is broken"))
    assert (out.getvalue(), err.getvalue()) == ("result\n", "warning: mind the gap\nerror: it is broken\n")


def test_an_error_is_a_sentence_and_after_a_blank_line_its_hint() -> None:
    output, out, err = two_papers()
    output.error(BadInput("`a` is broken", hint="fetch it again: hf download a"))
    assert (out.getvalue(), err.getvalue()) == ("", "error: `a` is broken\n\nhint: fetch it again: hf download a\n")


def test_json_holds_for_errors_too() -> None:
    output, out, err = two_papers(as_json=True)
    output.error(UsageError("two of them", hint="name one"), command="inspect")
    assert json.loads(out.getvalue()) == {
        "schema_version": 1,
        "command": "inspect",
        "fp8_version": __version__,
        "ok": False,
        "exit_code": 2,
        "result": None,
        "error": {"message": "two of them", "hint": "name one"},
    }
    assert err.getvalue() == "error: two of them\n\nhint: name one\n"


def test_a_negative_verdict_is_a_result_that_is_not_ok() -> None:
    output, out, _ = two_papers(as_json=True)
    output.document("compare", {"worse": True}, exit_code=ExitCode.NEGATIVE)
    document = json.loads(out.getvalue())
    assert (document["ok"], document["exit_code"], document["result"]) == (False, 1, {"worse": True})


def test_json_is_pure_ascii_whatever_the_names() -> None:
    output, out, _ = two_papers(as_json=True)
    output.document("inspect", {"name": HOSTILE, "file": "模型"})
    assert out.getvalue().isascii()
    assert json.loads(out.getvalue())["result"] == {"name": HOSTILE, "file": "模型"}


@dataclass(frozen=True)
class Report:
    path: PurePosixPath
    code: ExitCode
    sizes: tuple[int, ...]
    share: float
    part: "Report | None" = None

    @property
    def derived(self) -> int:
        return 1


def test_a_report_becomes_json_field_by_field() -> None:
    inner = Report(PurePosixPath("b"), ExitCode.DONE, (), float("nan"))
    assert to_json(Report(PurePosixPath("a/b"), ExitCode.NEGATIVE, (1, 2**60), 0.5, inner)) == {
        "path": "a/b",
        "code": 1,
        "sizes": [1, 2**60],
        "share": 0.5,
        "part": {"path": "b", "code": 0, "sizes": [], "share": None, "part": None},
    }


def test_a_report_with_something_unknown_is_an_error() -> None:
    with pytest.raises(TypeError, match="a report must not hold set"):
        to_json({"names": {1, 2}})


LOUD = """
import sys
from fp8cli.render.console import Output
output = Output.standard()
for number in range(100_000):
    output.line(f"line {number}")
print("finished", file=sys.stderr)
"""


def test_a_reader_that_leaves_ends_the_output_and_not_the_run(tmp_path: Path) -> None:
    program = tmp_path / "loud.py"
    program.write_text(LOUD, "utf-8")
    with (
        subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as loud,
        subprocess.Popen(["head", "-n", "2"], stdin=loud.stdout, stdout=subprocess.PIPE) as head,
    ):
        assert loud.stdout is not None
        assert loud.stderr is not None
        loud.stdout.close()
        first, _ = head.communicate(timeout=60)
        errors = loud.stderr.read()
        code = loud.wait(timeout=60)
    assert (first, errors, code) == (b"line 0\nline 1\n", b"finished\n", 0)


# Units


@pytest.mark.parametrize(
    ("size", "in_mb", "in_gb", "in_gib"),
    [
        (0, "0.000000", "0.00 GB", "0.00 GiB"),
        (1, "0.000001", "0.000000001 GB", "0.000000001 GiB"),
        (4_477_440, "4.477440", "0.00448 GB", "0.00417 GiB"),
        (1_073_741_824, "1073.741824", "1.07 GB", "1.00 GiB"),
        (9_083_953_152, "9083.953152", "9.08 GB", "8.46 GiB"),
        # Past 2**53 bytes a float would lose the last digits.
        (9_007_199_254_740_993, "9007199254.740993", "9007199.25 GB", "8388608.00 GiB"),
    ],
)
def test_sizes_are_exact_in_mb_and_readable_in_gb(size: int, in_mb: str, in_gb: str, in_gib: str) -> None:
    assert (mb(size), gb(size), gib(size)) == (in_mb, in_gb, in_gib)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0.0 %"), (0.0004, "<0.1 %"), (0.0005, "0.1 %"), (0.23168, "23.2 %"), (1.0, "100.0 %")],
)
def test_a_share_that_is_there_never_reads_zero(share: float, expected: str) -> None:
    assert percent(share) == expected


def test_counts_stand_in_groups_of_three() -> None:
    assert [count(number) for number in (0, 999, 1000, 6_979_321_856)] == ["0", "999", "1,000", "6,979,321,856"]
