"""Byte ranges of files on this machine: what is asked for comes back in order, whatever was merged on the way."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8cli.errors import BadInput
from fp8cli.formats import ranges
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.ranges import LOCAL_GAP_BYTES, LocalRanges, Span, merge_ranges, open_ranges

CONTENT = bytes(range(256)) * 400
asked = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 110_000), st.integers(0, 50_000)).map(
        lambda drawn: (drawn[0], drawn[1], drawn[1] + drawn[2])
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranges")
    (path / "a").write_bytes(CONTENT)
    (path / "b").write_bytes(CONTENT[::-1])
    return path


@settings(max_examples=200, deadline=None)
@given(asked, st.sampled_from([2**10, 2**16, 2**26]), st.sampled_from([2**12, 2**23]))
def test_every_range_comes_back_in_the_order_asked(
    folder: Path, wanted: list[tuple[str, int, int]], batch: int, span: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "BATCH_BYTES", batch)
        patch.setattr(ranges, "SPAN_BYTES", span)
        got = [*LocalRanges(folder.joinpath).read_many(wanted)]
    whole = {name: (folder / name).read_bytes() for name in "ab"}
    assert got == [whole[name][begin:end] for name, begin, end in wanted]


def test_near_ranges_of_a_file_are_merged_and_far_ones_are_not() -> None:
    wanted = [("b", 0, 1), ("a", 100, 200), ("a", 0, 50), ("a", 150, 160), ("a", 200 + 30 + 1, 300)]
    assert merge_ranges(wanted, gap_bytes=30) == (
        Span("a", 0, 50, (2,)),
        Span("a", 100, 200, (1, 3)),
        Span("a", 231, 300, (4,)),
        Span("b", 0, 1, (0,)),
    )
    assert merge_ranges(wanted, gap_bytes=50)[0] == Span("a", 0, 300, (2, 1, 3, 4))
    assert merge_ranges([], gap_bytes=50) == ()


def test_a_merged_read_stays_small_whatever_it_spans() -> None:
    wanted = [("a", at, at + 10) for at in range(0, 100 * 2**20, LOCAL_GAP_BYTES)]
    spans = merge_ranges(wanted, LOCAL_GAP_BYTES)
    assert max(span.end - span.begin for span in spans) <= ranges.SPAN_BYTES
    assert sorted(member for span in spans for member in span.members) == [*range(len(wanted))]


def test_a_range_longer_than_any_merged_read_comes_back_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BATCH_BYTES", 100)
    monkeypatch.setattr(ranges, "SPAN_BYTES", 10)
    wanted = [("a", 5, 6), ("a", 0, 90_000), ("a", 89_000, 100_000)]
    assert [*open_ranges(LocalFolder(folder)).read_many(wanted)] == [CONTENT[b:e] for _, b, e in wanted]


def test_a_file_by_itself_is_read_under_its_name(folder: Path) -> None:
    assert [*open_ranges(LocalFile(folder / "a")).read_many([("a", 1, 3)])] == [b"\1\2"]


def test_a_file_that_has_gone_is_named(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"^`gone` cannot be read: No such file or directory$"):
        [*open_ranges(LocalFolder(folder)).read_many([("gone", 0, 1)])]


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "x").symlink_to(folder / "a")
    with pytest.raises(BadInput, match="outside the checkpoint"):
        [*open_ranges(LocalFolder(tmp_path)).read_many([("x", 0, 1)])]
