"""Scales of families of several parts and of fused experts, against what transformers' own forward shows.

The oracle reads inputs off hooks, keys and values off the cache that transformers fills, and what goes into the last
projection of an expert from the weights as they lie on disk.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_matrix import family
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

from fp8cli.commands import inspect
from fp8cli.core.calibrating.calibration import calibrate
from fp8cli.core.calibrating.ordering import CalibrationOptions, order_calibration
from fp8cli.core.quantizing.calibrated_scales import decode
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.plan import Plan
from fp8cli.schemes import SCHEMES
from fp8cli.worker.failures import Failure
from tests.calibrated import MODEL, plan_of, write
from tests.families import FILE, save_reader
from tests.starting import fp8

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FP8 = torch.float8_e4m3fn
ROWS = 3
LAYER = re.compile(r"layers\.(\d+)\.(.+)")
ROWS_FIRST = ("Granite-MoE", "Granite-MoE, shared", "Granite 4 (hybrid)")
"""Families whose experts are stored as [experts, out, in]; the others' as their transposes."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join((MODEL / "heldout.jsonl").read_text("utf-8").splitlines(keepends=True)[:ROWS]))
    return path


def calibrate_here(
    source: Path, texts: Path, scheme: str | None, *, offload: str = "none", ignore: tuple[str, ...] = ("lm_head",)
) -> tuple[Plan, dict[str, bytes]]:
    """Do what the command does with a plan, in this process."""
    from fp8cli.calibrator.main import calibrate_job
    from fp8cli.worker.progress import Progress

    plan = plan_of(source, scheme, "tensor", ignore=[each for each in ignore if each != "lm_head"])
    chosen = None if scheme is None else SCHEMES[scheme]
    options = CalibrationOptions(data=str(texts), samples=ROWS, offload=offload)
    order = order_calibration(options, Choice(scheme=chosen, kv_cache="tensor"), model=source)
    assert order is not None
    folder = source.with_name("calibration")
    request = order.request(plan, model=source, folder=folder, targets=("Linear",), ignore=ignore, device="cpu")
    found = calibrate(
        request, lambda _: None, run=lambda _, folder, **__: calibrate_job(0, folder, Progress(folder, 0))
    )
    return plan, dict(found.values)


class Largest:
    """The largest magnitudes in a language model, by the names of scales without what is before `layers`."""

    def __init__(self, name: str, source: Path, texts: Path) -> None:
        self.seen: dict[str, float] = defaultdict(float)
        self.name, self.source = name, source
        # Computed step by step, and with a mask that is there.
        made = getattr(transformers, family(name).architecture)
        model = made.from_pretrained(source, dtype=torch.bfloat16, attn_implementation="eager").eval()
        for place, module in model.get_decoder().named_modules():
            match = LAYER.search(place)
            if match is not None and isinstance(module, torch.nn.Linear):
                self.watch(module, partial(self.see, f"{match[1]}.{match[2]}.input_scale"))
            elif match is not None and isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
                self.watch(module, partial(self.see_experts, match[1], match[2]))
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        for line in texts.read_text("utf-8").splitlines():
            self.run(model, torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]]))

    def watch(self, module: torch.nn.Module, see: Callable[[Tensor], None]) -> None:
        def before(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            see(args[0] if args else named.get("input", named.get("hidden_states")))

        module.register_forward_pre_hook(before, with_kwargs=True)

    def see(self, key: str, values: Tensor) -> None:
        self.seen[key] = max(self.seen[key], values.abs().max().item())

    def see_experts(self, layer: str, leaf: str, hidden: Tensor) -> None:
        leaf = leaf.replace("mlp", "block_sparse_moe") if self.name == "Mixtral" else leaf
        for number, (gate, up) in enumerate(gates_and_ups(self.name, self.source, layer)):
            for first in ("gate_proj", "up_proj", "w1", "w3"):
                self.see(f"{layer}.{leaf}.{number}.{first}.input_scale", hidden)
            for last in ("down_proj", "w2"):
                self.see(f"{layer}.{leaf}.{number}.{last}.input_scale", silu(hidden @ gate.t()) * (hidden @ up.t()))

    def run(self, model: Any, ids: Tensor) -> None:
        given = {"token_type_ids": torch.ones_like(ids)} if self.name.startswith("PaliGemma") else {}
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True, **given).past_key_values
        for number, layer in enumerate(cache.layers):
            if getattr(layer, "keys", None) is not None and layer.keys.numel():
                self.see(f"{number}.self_attn.k_scale", layer.keys)
                self.see(f"{number}.self_attn.v_scale", layer.values)


def gates_and_ups(name: str, source: Path, layer: str) -> list[tuple[Tensor, Tensor]]:
    """Return the first two matrices of every expert of a layer, [out, in], from the file."""
    tensors = load_file(source / FILE)
    here = {key: value for key, value in tensors.items() if f"layers.{layer}." in key}
    fused = next((value for key, value in here.items() if re.search("gate_up_proj|input_linear", key)), None)
    if fused is not None:
        return [(each if name in ROWS_FIRST else each.t()).chunk(2) for each in fused]
    gates, ups = (
        [here[key] for key in sorted(here) if re.search(rf"experts\.\d+\.({leaf})\.weight", key)]
        for leaf in ("gate_proj|w1", "up_proj|w3")
    )
    return list(zip(gates, ups, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "Qwen2-VL, newer names",
        "Qwen2.5-VL",
        "Llava 1.5",
        "Gemma 3 (vision)",
        "PaliGemma 2",
        "Mistral Small 3",
        "Qwen3.5",
        "Qwen3-VL-MoE",
        "Llama 4",
        "Mistral",
        "Mixtral",
        "Phi-3 and 4",
        "Qwen3-MoE",
        "Jamba",
        "Granite-MoE",
        "Granite-MoE, shared",
        "Granite 4 (hybrid)",
        "GLM 4.5V and 4.6V",
        "SmolVLM",
        "LFM2",
    ],
)
def test_every_scale_is_the_largest_magnitude_that_transformers_shows(name: str, texts: Path, tmp_path: Path) -> None:
    source = save_reader(name, tmp_path / "source")
    plan, scales = calibrate_here(source, texts, "FP8")
    write(source, tmp_path / "out", plan, scales)
    written = load_file(tmp_path / "out" / FILE)
    found = {key: value for key, value in written.items() if key.endswith((".input_scale", ".k_scale", ".v_scale"))}
    assert found.keys() == {scale.name for scale in plan.calibrated}
    wanted = Largest(name, source, texts).seen
    for key, value in found.items():
        match = LAYER.search(key)
        assert match is not None
        # A few roundings to BF16 on the way; a mask that is lost makes a factor of 2 and more of it.
        assert value.item() == pytest.approx(wanted[".".join(match.groups())] / 448, rel=0.02), key


@pytest.mark.parametrize("name", ["Granite-MoE", "Llama 4", "Qwen3-VL-MoE", "Gemma 3 (vision)"])
def test_a_cache_alone_leaves_every_tensor_as_it_was_and_experts_together(
    name: str, texts: Path, tmp_path: Path
) -> None:
    source = save_reader(name, tmp_path / "source")
    plan, scales = calibrate_here(source, texts, None)
    write(source, tmp_path / "out", plan, scales, ignore=())
    before, after = load_file(source / FILE), load_file(tmp_path / "out" / FILE)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    rest = after.keys() - before.keys()
    assert {key.rpartition(".")[2] for key in rest} == {"k_scale", "v_scale"}
    assert len(rest) == 2 * 2
    shutil.copy(source / "tokenizer.json", tmp_path / "out")
    report = inspect.run(inspect.InspectRequest(source=tmp_path / "out", against=str(source)))
    assert not [finding for finding in report.findings if finding.status == "failed"]


def test_a_model_with_a_number_called_v_scale_keeps_it(texts: Path, tmp_path: Path) -> None:
    source = save_reader("MiMo-V2-Flash", tmp_path / "source")
    with pytest.raises(Failure, match="`MiMoV2FlashAttention` has a `v_scale` of its own"):
        calibrate_here(source, texts, "FP8")


def test_weights_on_disk_change_no_scale(texts: Path, tmp_path: Path) -> None:
    source = save_reader("Llama 4", tmp_path / "source")
    _, loaded = calibrate_here(source, texts, "FP8")
    shutil.rmtree(tmp_path / "calibration")
    assert calibrate_here(source, texts, "FP8", offload="disk")[1] == loaded


def test_the_command_calibrates_a_language_model_with_experts_in_one_tensor_and_a_tower(
    texts: Path, tmp_path: Path
) -> None:
    source = save_reader("Llama 4", tmp_path / "source")
    kept = "language_model.model.layers.0.self_attn.o_proj"
    words = ("--scheme", "FP8", "--kv-cache", "fp8", "--ignore", kept, "--num-calibration-samples", str(ROWS))
    data = ("--calibration-data", str(texts))
    run = fp8(tmp_path, "quantize", str(source), "-o", str(tmp_path / "out"), *words, *data)
    assert run.code == 0, run.err
    assert "0/3 parts of the model calibrated" in run.err  # and not those of the tower
    before, after = load_file(source / FILE), load_file(tmp_path / "out" / FILE)
    towers = [key for key in before if key.startswith(("vision_model.", "multi_modal_projector."))]
    assert towers
    assert all(torch.equal(after[key], before[key]) for key in (*towers, f"{kept}.weight"))
    assert f"{kept}.input_scale" not in after
    # Codes are the nearest to the part of the fused tensor, which holds transposes.
    place = "language_model.model.layers.1.feed_forward.experts"
    _, up = before[f"{place}.gate_up_proj"][3].t().chunk(2)
    scale = after[f"{place}.3.up_proj.weight_scale"]
    assert torch.equal(scale, (up.abs().max() / 448).view(1))
    assert torch.equal(after[f"{place}.3.up_proj.weight"].view(torch.uint8), (up / scale).to(FP8).view(torch.uint8))
    plan, scales = calibrate_here(source, texts, "FP8", ignore=("lm_head", kept))
    assert {each.name: raw(after[each.name]) for each in plan.calibrated} == scales


def raw(scale: Tensor) -> bytes:
    return scale.view(torch.uint8).numpy().tobytes()


def test_the_engine_of_llm_compressor_keeps_the_mask_too(texts: Path, tmp_path: Path) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    from fp8cli.calibrator.compressing import compress_model
    from fp8cli.calibrator.loading import load_model
    from fp8cli.samples.encoding import Encoded

    source = save_reader("Mistral", tmp_path / "source")
    _, scales = calibrate_here(source, texts, "FP8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    rows = [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()]
    encoded = Encoded(
        ids=tuple(tuple(tokenizer(row)["input_ids"]) for row in rows), max_seq_length=512, conversations=False
    )
    model = load_model(str(source), "bfloat16", offload=None)
    recipe = QuantizationModifier(targets=["Linear"], scheme="FP8", ignore=["lm_head"])
    compress_model([recipe], model, tokenizer, encoded, lambda *_, **__: None)
    found = {
        f"{name}.input_scale": each.input_scale for name, each in model.named_modules() if hasattr(each, "input_scale")
    }
    for name, scale in found.items():
        # It rounds weights and activations on the way; without a mask `o_proj` would be off by a factor of 4.
        assert scale.item() == pytest.approx(decode("BF16", scales[name])[0], rel=0.1), name
