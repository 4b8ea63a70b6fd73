"""Series over depth: layers read from names, what each layer's scales and errors come to, computed by hand."""

import math
from collections.abc import Sequence

import pytest

from fp8cli.core.findings import Finding
from fp8cli.core.folding import fold
from fp8cli.core.inspection.depth import (
    BadScales,
    Band,
    FidelityDepth,
    Span,
    Worst,
    over_depth,
)
from fp8cli.core.inspection.depth_axis import Axis, Place, Stack, lay_out, locate
from fp8cli.core.inspection.fidelity import WeightFidelity
from fp8cli.core.inspection.scale_values import ScaleStats
from fp8cli.core.unfolding import unfold

Range = tuple[float, float] | None


def scales(label: str, **ranges: Range) -> ScaleStats:
    """Scales of one label, two values a tensor; keyword `layers_0_mlp` stands for `layers.0.mlp`."""
    known = [limits for limits in ranges.values() if limits is not None]
    return ScaleStats(
        label=label,
        dtypes=("F32",),
        tensors=len(ranges),
        values=2 * len(ranges),
        minimum=min((low for low, _ in known), default=None),
        median=0.5,
        maximum=max((high for _, high in known), default=None),
        bad={},
        names=tuple(f"{name.replace('__', '.')}.{label}" for name in ranges),
        ranges=tuple(ranges.values()),
    )


def weight(name: str, sqnr_db: float) -> WeightFidelity:
    return WeightFidelity(name=name, sqnr_db=sqnr_db, largest_error=0.1, at=(0, 0))


def fault(check: str, subject: str, count: int = 1) -> Finding:
    return Finding(check=check, status="failed", subject=subject, found="bad", count=count)


def span(position: int, smallest: float, middle: float, largest: float, tensors: int = 1) -> Span:
    return Span(position=position, smallest=smallest, middle=middle, largest=largest, tensors=tensors)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.self_attn.q_proj.weight_scale", Place("model.layers", 12, "attention")),
        ("transformer.h.0.attn.c_attn.weight", Place("transformer.h", 0, "attention")),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", Place("encoder.block", 3, "attention")),
        ("encoder.block.3.layer.1.DenseReluDense.wi.weight", Place("encoder.block", 3, "mlp")),
        ("model.layers.7.mlp.down_proj.weight_scale", Place("model.layers", 7, "mlp")),
        ("model.layers.7.mlp.experts.255.down_proj.weight_scale", Place("model.layers", 7, "experts")),
        ("model.layers.7.mlp.shared_expert.down_proj.weight", Place("model.layers", 7, "experts")),
        ("model.layers.7.block_sparse_moe.experts.1.w2.weight", Place("model.layers", 7, "experts")),
        ("backbone.layers.4.mixer.in_proj.weight", Place("backbone.layers", 4, "other")),
        ("lm_head.weight_scale", Place(None, 0, "other")),
        ("0.weight", Place("", 0, "other")),
        # A number that no layer has, digits of another script, and a number inside a word.
        ("model.layers.1234567.mlp.weight", Place(None, 0, "mlp")),
        ("model.layers.٣.mlp.weight", Place(None, 0, "mlp")),
        ("model.layer12.mlp.weight", Place(None, 0, "mlp")),
        ("", Place(None, 0, "other")),
    ],
)
def test_layer_and_kind_of_module_come_from_the_name(name: str, place: Place) -> None:
    assert locate(name) == place


def test_the_largest_stack_comes_first_and_what_is_in_no_layer_last() -> None:
    names = ["visual.blocks.0.attn", "visual.blocks.1.attn", *(f"model.layers.{n}.mlp" for n in (2, 3, 5)), "lm_head"]
    axis = lay_out(map(locate, names))
    assert axis == Axis(
        stacks=(
            Stack(name="model.layers", first=2, last=5, begin=0),
            Stack(name="visual.blocks", first=0, last=1, begin=5),
        ),
        outside=8,
    )
    assert [axis.position(locate(name)) for name in names] == [5, 6, 0, 1, 3, 8]
    assert [axis.describe(n) for n in (1, 6, 8)] == ["model.layers 3", "visual.blocks 1", "outside the layers"]
    assert axis.end == 8


def test_one_stack_needs_no_name_and_no_tensors_no_axis() -> None:
    axis = lay_out([locate("h.4.mlp")])
    assert (axis.describe(0), axis.outside, axis.end) == ("layer 4", None, 0)
    assert lay_out([]) == Axis(stacks=(), outside=None)


def test_stacks_beyond_the_fourth_count_as_outside_the_layers() -> None:
    names = [f"s{stack}.{layer}.w" for stack in range(6) for layer in range(6 - stack)]
    axis = lay_out(map(locate, names))
    assert [stack.name for stack in axis.stacks] == ["s0", "s1", "s2", "s3"]
    assert axis.position(locate("s4.0.w")) == axis.position(locate("s5.0.w")) == axis.outside == 22


def test_a_layer_has_the_extremes_of_its_tensors_and_the_median_of_their_middles() -> None:
    # Middles, √(smallest · largest): 2, 8 and 3 in layer 0; 5 in layer 1.
    stats = scales("weight_scale", h__0__mlp__a=(1, 4), h__0__mlp__b=(4, 16), h__0__mlp__c=(3, 3), h__1__attn=(5, 5))
    (drawn,) = over_depth([stats], [], []).scales
    assert (drawn.kind, drawn.labels, drawn.tensors, drawn.values) == ("weight", ("weight_scale",), 4, 8)
    assert (drawn.smallest, drawn.median, drawn.largest) == (1, 0.5, 16)
    assert drawn.bands == (
        Band(name="attention", spans=(span(1, 5, pytest.approx(5), 5),)),
        Band(name="mlp", spans=(span(0, 1, pytest.approx(3), 16, tensors=3),)),
    )


def test_weights_and_activations_have_a_drawing_for_each_label_and_the_cache_has_one() -> None:
    stats = [
        scales("input_scale", h__0__mlp=(1, 1)),
        scales("k_scale", h__0__attn=(2, 2)),
        scales("v_scale", h__0__attn=(3, 3)),
        scales("weight_scale", h__0__mlp=(4, 4)),
        scales("weight_scale_2", h__0__mlp=(5, 5)),
    ]
    drawn = over_depth(stats, [], []).scales
    assert [each.labels for each in drawn] == [
        ("weight_scale",),
        ("weight_scale_2",),
        ("input_scale",),
        ("k_scale", "v_scale"),
    ]
    assert [band.name for band in drawn[-1].bands] == ["k_scale", "v_scale"]
    assert (drawn[-1].smallest, drawn[-1].median, drawn[-1].largest) == (2, None, 3)


def test_bad_scales_stand_at_their_layers_with_the_gravest_of_their_faults() -> None:
    stats = scales("weight_scale", h__0__mlp=None, h__1__mlp=(1, 1), h__2__mlp=(1, 1), h__3__mlp=(1, 1))
    findings = [
        fault("scale.zero", "h.{0..2}.mlp.weight_scale", 3),
        fault("scale.nan", "h.1.mlp.weight_scale"),
        fault("scale.missing", "h.3.mlp.weight"),
        fault("scale.infinite", "h.9.mlp.weight_scale"),
    ]
    (drawn,) = over_depth([stats], findings, []).scales
    assert drawn.bad == (
        BadScales(position=0, fault="zero", tensors=1),
        BadScales(position=1, fault="nan", tensors=1),
        BadScales(position=2, fault="zero", tensors=1),
    )
    assert [each.position for each in drawn.bands[0].spans] == [1, 2, 3]


def test_scales_without_one_good_value_have_no_bands() -> None:
    (drawn,) = over_depth([scales("weight_scale", h__0__mlp=None)], [], []).scales
    assert (drawn.smallest, drawn.largest, drawn.bands) == (None, None, ())


def test_errors_are_summed_up_by_layer_and_the_worst_named() -> None:
    weights = [
        weight("h.0.mlp.a", 30.0),
        weight("h.0.mlp.b", 31.0),
        weight("h.0.mlp.c", 31.6),
        weight("h.1.attn.q", 15.0),
        weight("h.1.attn.k", math.inf),
        weight("h.1.attn.v", -math.inf),
    ]
    depth = over_depth([], [], weights)
    assert depth.fidelity == FidelityDepth(
        bands=(
            Band(name="attention", spans=(span(1, 15.0, 15.0, 15.0),)),
            Band(name="mlp", spans=(span(0, 30.0, 31.0, 31.6, tensors=3),)),
        ),
        worst=(
            Worst(position=1, name="h.1.attn.v", sqnr_db=-math.inf),
            Worst(position=1, name="h.1.attn.q", sqnr_db=15.0),
            Worst(position=0, name="h.0.mlp.a", sqnr_db=30.0),
        ),
        equal=1,
        unlike=1,
    )


def test_weights_equal_to_their_source_are_not_among_the_worst() -> None:
    fidelity = over_depth([], [], [weight("h.0.mlp", math.inf), weight("h.1.mlp", math.inf)]).fidelity
    assert fidelity == FidelityDepth(bands=(), worst=(), equal=2, unlike=0)


def test_nothing_compared_is_not_the_same_as_nothing_wrong() -> None:
    assert over_depth([], [], []).fidelity is None


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.3.mlp.weight"],
        [f"layers.{layer}.experts.{expert}.w" for layer in range(3) for expert in (0, 1, 2, 5, 7, 8)],
        [
            f"layers.{layer}.experts.{expert}.w"
            for layer in range(4)
            for expert in range(4)
            if (layer, expert) != (1, 2)
        ],
        ["{0..2}.weight"],
        ["layers.007.w", "layers.8.w"],
    ],
)
def test_unfolding_undoes_folding(names: Sequence[str]) -> None:
    unfolded = [name for folded in fold(names) for name in unfold(folded.pattern, len(folded.names))]
    assert sorted(unfolded) == sorted(names)


def test_a_pattern_that_does_not_stand_for_as_many_names_is_not_unfolded() -> None:
    assert unfold("layers.{0..999999999}.w", 3) == ()
    assert unfold("layers.{0..2}.w", 4) == ()
    assert unfold("layers.{5..2}.w", 1) == ("layers.{5..2}.w",)
