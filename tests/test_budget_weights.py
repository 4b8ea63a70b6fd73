"""Choices from the weights alone: noise against the written checkpoint decoded by torch, sets against exhaustion."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.core.budgeting.groups import Group
from fp8cli.core.budgeting.weight_choice import choose_by_weights
from fp8cli.core.budgeting.weight_noise import measure_weights
from fp8cli.core.budgeting.work_place import open_work_place
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.measurer.budget_protocol import Goal
from tests.calibrated import MODEL, made_up, plan_of, write

SHARD = "model.safetensors"


def spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the scale of every element."""
    wide = scale.double()
    if scale.numel() == 1:
        return wide.reshape(1, 1).expand(shape)
    if scale.shape == (shape[0], 1):
        return wide.expand(shape)
    return wide.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "FP8"])
def test_the_noise_of_a_weight_is_that_of_the_written_checkpoint(tmp_path: Path, scheme: str) -> None:
    plan = plan_of(MODEL, scheme)
    write(MODEL, tmp_path / "out", plan, made_up(plan))
    before, after = load_file(MODEL / SHARD), load_file(tmp_path / "out" / SHARD)
    told: list[BytesRead | ReadingBegins] = []
    found = measure_weights(plan, LocalFolder(MODEL).resolve, workers=2, notify=told.append)
    assert len(found) == 21
    for name, (signal, noise) in found.items():
        weight = before[name].double()
        decoded = after[name].double() * spread(after[f"{name}_scale"], weight.shape)
        assert signal == pytest.approx(float(weight.square().sum()), rel=1e-6)
        assert noise == pytest.approx(float((weight - decoded).square().sum()), rel=1e-5)
    # Every byte is announced, and told of once.
    begins = [event for event in told if isinstance(event, ReadingBegins)]
    assert sum(event.bytes for event in told if isinstance(event, BytesRead)) == begins[0].bytes


def groups_and_noise() -> tuple[list[Group], dict[str, tuple[float, float]]]:
    ratios = [0.001, 0.02, 0.0004, 0.003, 0.0, 0.0011, 0.05, 0.0009]
    sizes = [10, 35, 10, 20, 10, 35, 40, 20]
    groups = [
        Group(name=str(number), modules=(str(number),), tensors=(f"{number}.a", f"{number}.b"), saved_bytes=saved)
        for number, saved in enumerate(sizes)
    ]
    noise = {f"{number}.a": (7.0, 7.0 * ratio) for number, ratio in enumerate(ratios)}
    return groups, noise | {f"{number}.b": (5.0, 5.0 * ratio / 2) for number, ratio in enumerate(ratios)}


def test_every_group_below_the_sqnr_stays_and_no_other() -> None:
    groups, noise = groups_and_noise()
    kept = choose_by_weights(groups, noise, Goal(kind="sqnr", value=29.9)).kept
    # 10^(-2.99) = 0.00102: of each group its worse weight counts.
    assert kept == {1, 3, 5, 6}


def test_within_a_size_the_most_noise_is_taken_away() -> None:
    groups, noise = groups_and_noise()
    ratios = [noise[group.tensors[0]][1] / 7 for group in groups]
    for room in range(0, 180, 15):
        kept = choose_by_weights(groups, noise, Goal(kind="size", value=room)).kept
        fitting = [
            chosen
            for length in range(9)
            for chosen in itertools.combinations(range(8), length)
            if sum(groups[number].saved_bytes for number in chosen) <= room
        ]
        best = max(sum(ratios[number] for number in chosen) for chosen in fitting)
        assert sum(groups[number].saved_bytes for number in kept) <= room
        assert math.isclose(sum(ratios[number] for number in kept), best)


def damaged(folder: Path, **values: float) -> Path:
    """Return a copy of the bundled model with its first down_proj changed at one place."""
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((MODEL / name).read_bytes())
    tensors = load_file(MODEL / SHARD)
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = values["at_3_5"]
    save_file(tensors, folder / SHARD, {"format": "pt"})
    return folder


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "FP8"])
def test_a_weight_that_holds_nan_is_refused_by_its_place(tmp_path: Path, scheme: str) -> None:
    model = damaged(tmp_path / "model", at_3_5=math.nan)
    plan = plan_of(model, scheme)
    with pytest.raises(BadInput, match=r"layers\.0\.mlp\.down_proj\.weight` holds NaN at row 3, column 5"):
        measure_weights(plan, LocalFolder(model).resolve, workers=1, notify=lambda _: None)


def test_two_runs_do_not_measure_for_one_output_at_once(tmp_path: Path) -> None:
    with open_work_place(tmp_path / "out", restart=False, dry_run=False) as place:
        place.keep("one", {"kept": [1]})
        with (
            pytest.raises(CannotRun, match="another run is measuring what stays in 16 bits"),
            open_work_place(tmp_path / "out", restart=False, dry_run=False),
        ):
            pass
    with open_work_place(tmp_path / "out", restart=False, dry_run=False) as place:
        assert place.known("one") == {"kept": [1]}
        assert place.known("other") is None
    with open_work_place(tmp_path / "out", restart=True, dry_run=False) as place:
        assert place.known("one") is None


def test_without_the_kernel_it_is_said_that_weights_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FP8_KERNEL", "off")
    with pytest.raises(CannotRun, match="compiled kernel"):
        measure_weights(plan_of(MODEL, "FP8_DYNAMIC"), LocalFolder(MODEL).resolve, workers=1, notify=lambda _: None)
