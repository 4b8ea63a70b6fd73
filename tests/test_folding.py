"""Many numbered names as one pattern: which fold together, and that no name is lost or made up."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8cli.core.folding import fold


def test_experts_fold_along_both_indices() -> None:
    names = [f"layers.{layer}.experts.{expert}.w1" for layer in range(4) for expert in range(128)]
    assert [found.pattern for found in fold(names)] == ["layers.{0..3}.experts.{0..127}.w1"]


def test_a_missing_expert_splits_the_pattern() -> None:
    names = [f"l.{layer}.e.{expert}" for layer in range(4) for expert in range(3) if (layer, expert) != (2, 1)]
    assert [found.pattern for found in fold(names)] == ["l.{0,1,3}.e.{0..2}", "l.2.e.{0,2}"]


@pytest.mark.parametrize(
    ("numbers", "pattern"),
    [
        ([7], "a.7"),
        ([0, 1], "a.{0,1}"),
        ([0, 2, 3, 4, 5], "a.{0,2..5}"),
        ([10, 9, 8, 3], "a.{3,8..10}"),
    ],
)
def test_numbers_fold_into_ranges(numbers: list[int], pattern: str) -> None:
    assert [found.pattern for found in fold(f"a.{number}" for number in numbers)] == [pattern]


def expand(pattern: str) -> list[str]:
    """Read a pattern back, the way a shell would."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices: list[list[str]] = []
    for position, part in enumerate(parts):
        if position % 2 == 0:
            choices.append([part])
            continue
        ranges = [item.partition("..") for item in part.split(",")]
        choices.append([str(n) for first, _, last in ranges for n in range(int(first), int(last or first) + 1)])
    return ["".join(choice) for choice in itertools.product(*choices)]


@given(st.sets(st.from_regex(r"[a-c]\.(0|[1-9]|1[0-2]|007)\.[xy](0|1|2|3)?", fullmatch=True), max_size=60))
def test_patterns_stand_for_every_name_exactly_once(names: set[str]) -> None:
    folds = fold(names)
    assert sorted(name for found in folds for name in found.names) == sorted(names)
    for found in folds:
        assert expand(found.pattern) == list(found.names)


def test_a_hostile_name_of_ten_thousand_numbers_folds() -> None:
    names = [f"{'1.' * 10_000}{last}" for last in range(2)] + ["9" * 5000]
    assert sorted(name for found in fold(names) for name in found.names) == sorted(names)
