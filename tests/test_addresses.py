"""Addresses: what they name, what is shown of them, and what is said of those that name nothing."""

from pathlib import Path

import pytest

from fp8cli.errors import BadInput, Fp8Error, UsageError
from fp8cli.formats.addresses import Address, mask, parse_address
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.remote_errors import explain
from fp8cli.formats.remote_folder import RemoteFolder
from fp8cli.formats.sources import fetch_command, full_name_of, name_of, resolve_anything, resolve_source
from fp8cli.formats.store_errors import is_passing

BUCKET = Address(scheme="s3", path="bucket/some/model")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket/some/model", BUCKET),
        ("s3://bucket/some/model/", BUCKET),
        ("hf://org/name", Address(scheme="hf", path="org/name")),
        ("hf://org/name@v1", Address(scheme="hf", path="org/name", revision="v1")),
        ("hf://org/name@refs/pr/1", Address(scheme="hf", path="org/name", revision="refs/pr/1")),
        ("org/name", None),
        ("./s3", None),
    ],
)
def test_an_address_is_read(text: str, address: Address | None) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hf://org/name", HubRepo("org/name")),
        ("hf://org/name@v1", HubRepo("org/name", "v1")),
        ("s3://bucket/some/model", RemoteFolder(BUCKET)),
        ("gs://bucket/x", RemoteFolder(Address(scheme="gs", path="bucket/x"))),
    ],
)
def test_it_is_the_source_that_it_names_and_nobody_is_asked(name: str, source: object) -> None:
    assert resolve_source(name) == source
    assert resolve_anything(name) == source


def test_a_file_address_is_the_folder_itself(tmp_path: Path) -> None:
    assert resolve_source(f"file://{tmp_path}") == LocalFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "revision", "error", "words"),
    [
        ("hf://", None, UsageError, "`hf://` names no place"),
        ("s3://", None, UsageError, "`s3://` names no place"),
        ("hf://org/name@", None, UsageError, "`hf://org/name@` names no place"),
        ("hf://a/b/c", None, BadInput, "`hf://a/b/c` is not the address of a model on the Hub"),
        ("hf://org/name@v1", "v2", UsageError, "`hf://org/name@v1` names a revision already"),
        ("s3://a/b", "v2", UsageError, "`s3://a/b` lies in a store, and what lies there has no revisions"),
        ("https://u:secret@host/a?sig=secret", None, BadInput, "`https://…@host/a?…` is an address"),
        ("file:///nowhere/at/all", None, BadInput, "`/nowhere/at/all` does not exist"),
    ],
)
def test_what_names_nothing_is_refused(name: str, revision: str | None, error: type[Fp8Error], words: str) -> None:
    with pytest.raises(error) as refused:
        resolve_source(name, revision)
    assert refused.value.message == words
    assert refused.value.hint


def test_users_passwords_and_signatures_are_not_shown() -> None:
    told = 'cannot connect to "http://u:p@host:9/b?X-Amz-Signature=abc&x=1" or s3://key:secret@bucket/a'
    assert mask(told) == 'cannot connect to "http://…@host:9/b?…" or s3://…@bucket/a'
    place = RemoteFolder(Address(scheme="s3", path="key:secret@bucket/a"))
    assert place.label == "s3://…@bucket/a"
    problem = explain(OSError(told), place.address)
    assert "secret" not in problem.message
    assert "abc" not in problem.message
    assert "secret" not in fetch_command(place)


def test_what_an_output_is_called_after() -> None:
    assert name_of(RemoteFolder(BUCKET)) == full_name_of(RemoteFolder(BUCKET)) == "model"
    assert name_of(HubRepo("org/name", "v1")) == "name"
    assert full_name_of(HubRepo("org/name", "v1")) == "org/name"


def test_a_hostile_address_is_one_line() -> None:
    with pytest.raises(Fp8Error) as refused:
        resolve_source("s3://a\x1b[31m\n" + "b" * 10_000, "v1")
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 1_100


@pytest.mark.parametrize(
    ("problem", "passing"),
    [
        (TimeoutError("slow"), True),
        (ConnectionResetError("gone"), True),
        (FileNotFoundError("no such key"), False),
        (PermissionError("Access Denied"), False),
        (ValueError("a bug"), False),
    ],
)
def test_what_is_worth_asking_again_is_known(problem: Exception, passing: bool) -> None:
    assert is_passing(problem) is passing
