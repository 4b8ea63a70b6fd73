"""vLLM's CPU build runs the families that it can, and computes with the output what it computes with the source.

The checkpoints of `test_families.py` again, with louder projections: as transformers initializes them, attention looks
everywhere alike and a gate is a straight line, so that queries and keys could be exchanged and nobody would notice.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from family_matrix import FAMILIES, SOUND, Family
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fp8cli.commands.quantize import QuantizeRequest, run
from tests.families import FILE, logits, save_family, tokens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ASKED = tuple(each for each in FAMILIES if (each.refused, each.vllm) == (None, None) and each.vllm_run != SOUND)
RUN = tuple(each for each in ASKED if each.vllm_run is None)
LOUDER = 4
ERROR = 0.3
"""Most that two answers may differ, relative to how much the source's vary: 0.05 to 0.25 is usual in FP8, and two
projections of one layer that are exchanged give 0.5 and more."""
ROUNDING = 0.03
"""Most that two programs may differ on the source: 0.02 is what rounding to BF16 leaves at most."""
SHARPER = 1.5
"""How much more that may be for Gemma 4, whose attention does not divide its products: random ones decide sharply."""
APART = {
    "Command A Vision": "vLLM multiplies the logits by `logit_scale`, transformers does not",
    "LFM2": "vLLM and transformers differ by 30 % on the source too; why is not known",
}
"""Families that are not compared between the two programs."""


def by_name(families: tuple[Family, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("each", families, ids=lambda each: each.name)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What vLLM made of each folder: its answers, or its refusal."""

    place: Path
    values: Mapping[str, torch.Tensor]
    refused: Mapping[str, str]


def save_tokenizer(folder: Path) -> None:
    """Save words for all 320 tokens, and those that processors of pictures look up: vLLM starts none without."""
    names = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(3, 320))]
    names += ["<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    names += ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)


def make_loud(source: Path) -> None:
    """Multiply the weights that are to be quantized."""
    report = run(QuantizeRequest(model=str(source), out=source.with_name("nowhere"), dry_run=True))
    loud = {row.name for row in report.tensors if row.action == "quantize"}
    tensors = load_file(source / FILE)
    assert loud <= tensors.keys()
    louder = {name: tensor * LOUDER if name in loud else tensor for name, tensor in tensors.items()}
    save_file(louder, source / FILE, metadata={"format": "pt"})


def spoil(output: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Copy an output with its tensors changed."""
    folder.mkdir()
    for file in output.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return folder


def exchange(one: str, other: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for leaf in ("weight", "weight_scale"):
            tensors[f"{one}.{leaf}"], tensors[f"{other}.{leaf}"] = tensors[f"{other}.{leaf}"], tensors[f"{one}.{leaf}"]

    return change


SPOILED: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], object]]] = {
    "a scale gone": (
        "Llama 2 and 3",
        lambda tensors: tensors.pop("model.layers.0.mlp.down_proj.weight_scale"),
    ),
    "gate and up exchanged": (
        "Llama 2 and 3",
        exchange("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"),
    ),
    "query and key exchanged": (
        "OPT",
        exchange("model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.self_attn.k_proj"),
    ),
}
"""Wrong outputs, each of a family."""


def kind_of(each: Family) -> str:
    """Say what vLLM is asked for."""
    if each.architecture.endswith("SequenceClassification"):
        return "classify"
    return "embed" if each.architecture.endswith("Model") else "generate"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Let one process of vLLM run every family's source and output, and the outputs that were spoiled."""
    place = tmp_path_factory.mktemp("running")
    asked = []
    for each in ASKED:
        source, output = place / "source" / each.name, place / "output" / each.name
        save_family(each, source)
        save_tokenizer(source)
        if each in RUN:
            make_loud(source)
            asked.append([f"source {each.name}", kind_of(each), str(source)])
        run(QuantizeRequest(model=str(source), out=output))
        asked.append([f"output {each.name}", kind_of(each), str(output)])
    for name, (of, change) in SPOILED.items():
        asked.append([name, "generate", str(spoil(place / "output" / of, place / name, change))])
    jobs = place / "jobs.json"
    jobs.write_text(json.dumps({"tokens": tokens().tolist(), "models": asked}))
    command = [sys.executable, "-m", "tests.vllm_running", str(place), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    return Served(
        place=place,
        values=load_file(place / "values.safetensors"),
        refused=json.loads((place / "refused.json").read_text()),
    )


def most(bound: float, each: Family) -> float:
    return bound * SHARPER if each.name.startswith("Gemma 4") else bound


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far two answers are apart, relative to how much the expected one varies."""
    return float((found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())


@by_name(RUN)
def test_vllm_s_cpu_build_computes_with_the_output_what_it_does_with_the_source(served: Served, each: Family) -> None:
    assert {name: words for name, words in served.refused.items() if name.endswith(f" {each.name}")} == {}
    found, expected = (served.values[f"{folder} {each.name}"] for folder in ("output", "source"))
    assert 0 < difference(found, expected) < most(ERROR, each)


@by_name(
    tuple(each for each in RUN if each.transformers is None and kind_of(each) == "generate" and each.name not in APART)
)
def test_vllm_and_transformers_compute_the_same_with_the_source_and_close_with_the_output(
    served: Served, each: Family
) -> None:
    for folder, bound in (("source", ROUNDING), ("output", ERROR)):
        theirs = logits(served.place / folder / each.name, each)[0][:, -1].log_softmax(-1)
        assert difference(served.values[f"{folder} {each.name}"][:, 0], theirs) < most(bound, each), folder


@by_name(tuple(each for each in ASKED if each.vllm_run is not None))
def test_a_family_that_vllm_s_cpu_build_does_not_run_is_refused_in_the_words_on_record(
    served: Served, each: Family
) -> None:
    assert str(each.vllm_run).split('"')[1] in served.refused[f"output {each.name}"]


@pytest.mark.parametrize("name", SPOILED)
def test_a_wrong_output_is_told_from_a_right_one(served: Served, name: str) -> None:
    of, _ = SPOILED[name]
    expected, right = (served.values[f"{folder} {of}"] for folder in ("source", "output"))
    # A scale that is never given is NaN, and NaN is below nothing.
    assert not difference(served.values[name], expected) < max(ERROR, 2 * difference(right, expected))
