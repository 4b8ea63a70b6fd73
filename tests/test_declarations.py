"""What a config.json declares, in words: every known way of saying it, and "unknown" for what is not sure."""

from collections.abc import Mapping
from typing import Any

import pytest

from fp8cli.core.inspection.declared_methods import read_declaration
from fp8cli.schemes import SCHEMES
from tests.sparse import DYNAMIC_GROUP, FLOAT8

Config = dict[str, Any]


def group(weights: Mapping[str, object], activations: Mapping[str, object] | None, **more: object) -> Config:
    """Return the config of a compressed-tensors checkpoint of one group."""
    one = {"targets": ["Linear"], "weights": {**FLOAT8, **weights}, "input_activations": None}
    if activations is not None:
        one["input_activations"] = {**FLOAT8, **activations}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": one}, **more}}


def native(**words: object) -> Config:
    return {"quantization_config": {"quant_method": "fp8", **words}}


TOKEN = {"strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    ("scheme", "config"),
    [
        ("FP8_DYNAMIC", group({"strategy": "channel"}, TOKEN)),
        (
            "FP8_BLOCK",
            group(
                {"strategy": "block", "block_structure": [128, 128]},
                {"strategy": "group", "group_size": 128, "dynamic": True},
            ),
        ),
        ("FP8_BLOCK", native(fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])),
        ("FP8", group({"strategy": "tensor"}, {"strategy": "tensor", "dynamic": False})),
        ("FP8", native(activation_scheme="static")),
        ("FP8", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}),
    ],
)
def test_each_scheme_is_told_by_its_config(scheme: str, config: Config) -> None:
    found = read_declaration(config, {})
    assert found is not None
    assert (found.scheme, found.words) == (scheme, SCHEMES[scheme].summary)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (group({"strategy": "channel"}, None), "E4M3 weights per channel, activations left alone"),
        ({"text_config": group({"strategy": "channel"}, None)}, "E4M3 weights per channel, activations left alone"),
        (
            group({"strategy": "group", "group_size": 32}, {"strategy": "group", "group_size": 32, "dynamic": True}),
            "E4M3 weights per group of 32, activations per group of 32 at run time",
        ),
        (group({"strategy": "channel", "num_bits": 4}, None), "FP4 weights per channel, activations left alone"),
        (group({"strategy": "channel", "type": "int"}, None), "INT8 weights per channel, activations left alone"),
        (
            native(fmt="e5m2", activation_scheme="static"),
            "E5M2 weights per tensor, activations per tensor, calibrated",
        ),
        (group({"strategy": "channel"}, {"strategy": "token", "dynamic": "local"}), None),
        (group({"strategy": "attn_head"}, TOKEN), None),
        (native(activation_scheme="sometimes"), None),
    ],
)
def test_others_get_words_only_where_they_are_sure_and_no_scheme(config: Config, words: str | None) -> None:
    found = read_declaration(config, {})
    assert found is not None
    assert (found.scheme, found.words) == (None, words)


def test_a_mixture_names_all_its_schemes_and_is_none_of_them() -> None:
    config = group({"strategy": "tensor"}, None)
    config["quantization_config"]["config_groups"]["group_1"] = DYNAMIC_GROUP
    found = read_declaration(config, {})
    assert found is not None
    assert found.scheme is None
    assert found.words is not None
    assert "per tensor" in found.words
    assert "per channel" in found.words


def test_a_quantized_cache_is_said_in_words() -> None:
    config = group({"strategy": "channel"}, TOKEN, kv_cache_scheme={**FLOAT8, "strategy": "tensor", "dynamic": False})
    found = read_declaration(config, {})
    assert found is not None
    assert found.kv_cache is not None
    assert found.kv_cache.kind == "E4M3"


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}])
def test_no_block_is_no_quantization(config: Config) -> None:
    assert read_declaration(config, {}) is None
