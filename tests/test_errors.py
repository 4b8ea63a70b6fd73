"""The error family: one exit code a class, and messages that are safe to print whatever they quote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8cli.errors import (
    MAX_SHOWN,
    BadInput,
    CannotRun,
    ExitCode,
    Fp8Error,
    Interrupted,
    NotComparable,
    UsageError,
    printable,
)

# CannotRun and BadInput share a code on purpose: both mean that the command could not run.
EXIT_CODES = {UsageError: 2, BadInput: 3, CannotRun: 3, NotComparable: 5, Interrupted: 130, Fp8Error: 3}


def test_every_error_class_is_listed_here_with_its_exit_code() -> None:
    assert {Fp8Error, *Fp8Error.__subclasses__()} == set(EXIT_CODES)
    assert {family: int(family.exit_code) for family in EXIT_CODES} == EXIT_CODES


def test_exit_codes_are_unique_and_each_has_a_meaning() -> None:
    values = [int(code) for code in ExitCode.__members__.values()]
    meanings = [code.meaning for code in ExitCode]
    assert len(set(values)) == len(values) == len(ExitCode)
    assert len(set(meanings)) == len(meanings)
    assert all(meanings)
    assert 0 not in {int(family.exit_code) for family in EXIT_CODES}


def test_an_exit_code_is_the_number_it_says() -> None:
    assert ExitCode(3) is ExitCode.COULD_NOT_RUN
    assert json.dumps(ExitCode.NEGATIVE) == "1"


@pytest.mark.parametrize("family", [*EXIT_CODES])
def test_an_error_keeps_its_message_and_hint(family: type[Fp8Error]) -> None:
    error = family("`x` is 3 bytes long", hint="fp8 inspect x")
    assert (error.message, error.hint, str(error)) == ("`x` is 3 bytes long", "fp8 inspect x", "`x` is 3 bytes long")
    assert family("alone").hint is None


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("model.layers.0", "model.layers.0"),
        ("Größe 漢字 😀 ⌈x⌉ × …", "Größe 漢字 😀 ⌈x⌉ × …"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\a, DEL\x7f, C1 \x9b31m", r"bell\x07, DEL\x7f, C1 \x9b31m"),
        ("line\nerror: forged\r", r"line\nerror: forged\r"),
        ("two\u2028lines", r"two\u2028lines"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("tokenizer-\udcff.json", r"tokenizer-\udcff.json"),
        ("NUL\0", r"NUL\x00"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_text_is_left_alone(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    error = BadInput(raw, hint=raw)
    assert (error.message, error.hint, str(error)) == (shown, shown, shown)


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_any_text_becomes_printable_and_stays_so(raw: str) -> None:
    shown = printable(raw)
    assert shown.isprintable()
    assert shown.encode().decode() == shown == printable(shown)


def test_a_message_of_a_megabyte_keeps_its_beginning_and_its_end() -> None:
    error = BadInput(f"`model.safetensors` gives `{'x' * 1_000_000}` 4 bytes, but F32 [2] needs 8")
    assert error.message.startswith("`model.safetensors` gives `xxx")
    assert error.message.endswith("xxx` 4 bytes, but F32 [2] needs 8")
    assert "…" in error.message
    assert len(error.message) == MAX_SHOWN - 1
