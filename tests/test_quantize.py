"""`fp8 quantize` as a user meets it: what it prints, what it refuses, what it leaves behind."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.cli.app import command_line
from fp8cli.formats.safetensors import lay_out
from fp8cli.formats.staging import partial_folder
from tests.malformed import MALFORMED, Malformed
from tests.models import ODD, llama_config, qwen2_config, save_model


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Fp8 = Callable[..., Outcome]


@pytest.fixture
def fp8(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fp8:
    """Run the command in this process, as the program would."""

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fp8", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            command_line()
        shown = capsys.readouterr()
        return Outcome(int(left.value.code or 0), shown.out, shown.err)

    return call


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole checkpoint with everything a repository carries; never written to."""
    folder = save_model(tmp_path_factory.mktemp("quantize") / "tiny-llama", llama_config())
    files = {
        "README.md": "---\nlicense: llama3\nlicense_name: meta\nlicense_link: LICENSE\nlanguage: en\n---\n# Tiny\n",
        "LICENSE": "terms",
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "modeling_tiny.py": "pass",
        "pytorch_model.bin": "pickle",
        "consolidated.safetensors": "the same again",
        "tiny.Q8_0.gguf": "GGUF",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    return folder


def test_the_output_goes_beside_the_prompt_under_the_model_s_name(
    fp8: Fp8, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fp8("quantize", source).code == 0
    assert fp8("quantize", source, "--scheme", "fp8_block").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-llama-FP8-block", "tiny-llama-FP8-dynamic"]


def test_the_report_says_what_became_of_the_bytes(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out")
    assert result.code == 0
    timing = re.search(r"^(\d+\.\d s) · (\d+ workers?), at most 1.00 GiB for tiles$", result.out, re.MULTILINE)
    assert timing, result.out
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        by_dtype[str(tensor.dtype)] = by_dtype.get(str(tensor.dtype), 0) + tensor.nbytes
    before = sum(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
    after = sum(by_dtype.values())
    assert result.out == (
        f"{source} → {tmp_path / 'out'} · FP8_DYNAMIC: E4M3 weights per channel, activations per token at run time\n"
        "\n"
        "dtype                before (MB)  after (MB)\n"
        f"torch.bfloat16          {before / 1e6:.6f}    {by_dtype['torch.bfloat16'] / 1e6:.6f}\n"
        f"torch.float8_e4m3fn     0.000000    {by_dtype['torch.float8_e4m3fn'] / 1e6:.6f}\n"
        f"total                   {before / 1e6:.6f}    {after / 1e6:.6f}\n"
        "\n"
        f"{after / 1e9:.6f} GB = {after / 2**30:.6f} GiB, {after / before:.1%} of the source · "
        "tensors: 7 copied unchanged, 14 quantized\n".replace("%", " %")
        + f"{timing[0]}\n"
        "inspected before it was published: 17 checks passed\n"
        "\n"
        "tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16\n"
        "vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors\n"
        "GPUs of compute capability 8.9 and later compute in FP8; those from 7.5 keep the weights in FP8 and compute "
        "in 16 bits; older ones cannot load it (vLLM 0.32).\n"
        f"vllm serve {tmp_path / 'out'}\n"
    )


def test_json_holds_all_of_it_and_nothing_else_is_on_stdout(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out", "--json")
    document = json.loads(result.out)
    assert (document["schema_version"], document["command"], document["ok"], document["exit_code"]) == (
        1,
        "quantize",
        True,
        0,
    )
    report = document["result"]
    assert report["counts"] == {"copy": 7, "quantize": 14}
    assert report["scheme"]["name"] == "FP8_DYNAMIC"
    assert report["ignored_modules"] == ["lm_head"]
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / "model.safetensors").values())
    assert sum(report["bytes_after"].values()) == stored
    assert len(report["tensors"]) == 21
    assert all(row["reason"] for row in report["tensors"])


def test_side_files_are_carried_over_and_other_weights_are_not(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "fp8.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_tiny.py",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert "not carried over: " in result.err
    for name in ("consolidated.safetensors", "original/params.json", "pytorch_model.bin", "tiny.Q8_0.gguf"):
        assert name in result.err


def test_the_card_says_what_was_done_and_keeps_the_licence(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    fp8("quantize", source, "-o", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---\n")[1].splitlines()
    assert front[:3] == ["license: llama3", "license_name: meta", "license_link: LICENSE"]
    assert "language: en" not in front
    assert "- fp8" in front
    for words in ("`FP8_DYNAMIC`", "`lm_head`", "fingerprint of the headers", "fp8cli 0.1.0", "vllm serve out"):
        assert words in card


def test_a_dry_run_writes_nothing_and_shows_every_decision_with_its_reason(
    fp8: Fp8, source: Path, tmp_path: Path
) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out", "--dry-run", "--details")
    assert result.code == 0
    assert list(tmp_path.iterdir()) == []
    assert "dry run, nothing written · estimate " in result.out
    lines = [re.split(r"\s{2,}", line) for line in result.out.splitlines()]
    assert lines_with(lines, "model.norm") == ["model.norm.weight", "copy", "bfloat16", "[128]"]
    assert lines_with(lines, "model.layers.{0,1}.mlp.down_proj.weight ×2") == [
        "model.layers.{0,1}.mlp.down_proj.weight ×2",
        "quantize",
        "bfloat16→float8_e4m3fn",
        "[128, 256]",
    ]
    assert "✓ disk space: " in result.out


def lines_with(lines: list[list[str]], name: str) -> list[str]:
    return next(line for line in lines if line[0].startswith(name))[:4]


def test_a_dry_run_adds_up_to_the_real_run(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    planned = json.loads(fp8("quantize", source, "-o", tmp_path / "out", "--dry-run", "--json").out)["result"]
    done = json.loads(fp8("quantize", source, "-o", tmp_path / "out", "--json").out)["result"]
    for key in ("counts", "bytes_before", "bytes_after", "bytes_written", "tensors", "ignored_modules"):
        assert planned[key] == done[key]
    assert planned["bytes_written"] == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_a_dry_run_loads_no_torch(source: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['fp8', 'quantize', sys.argv[1], '-o', sys.argv[2], '--dry-run']\n"
        "from fp8cli.cli.app import main\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'pandas', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr.endswith("set()\n")


def test_ignored_modules_stay_and_the_config_names_them(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    words = ["--ignore", "re:.*self_attn.*", "--ignore", "model.layers.0.mlp.down_proj"]
    assert fp8("quantize", source, "-o", tmp_path / "out", *words).code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    assert ignored[-1] == "lm_head"
    assert len(ignored) == 10
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn} == {
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }


@pytest.mark.parametrize("option", ["--ignore", "--targets"])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name(
    fp8: Fp8, source: Path, tmp_path: Path, option: str
) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out", option, "model.layers.0.mlp.downproj")
    assert result.code == 2
    assert "`model.layers.0.mlp.downproj`" in result.err
    assert "model.layers.0.mlp.down_proj" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--scheme", "FP9"], 2, "`FP9` is no scheme"),
        (["--scheme", "fp8"], 2, "calibration needs data"),
        (["--dtype", "bf16"], 2, "`bf16` is no dtype"),
        (["--device", "gpu"], 2, "`gpu` is no device"),
        (["--device", "cuda:7"], 3, "`cuda:7` is not here"),
        (["--workers", "0"], 2, "leaves no one to do the work"),
        (["--max-memory", "lots"], 2, "is no size"),
        (["--max-memory", "1kB"], 2, "is too little"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_a_way_out(
    fp8: Fp8, source: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out", *words)
    assert (result.code, result.out) == (code, "")
    assert re.search(rf"^error: .*{re.escape(message)}", result.err)
    assert "\n\nhint: " in result.err
    assert not (tmp_path / "out").exists()


def test_an_error_in_json_is_a_document_too(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    result = fp8("quantize", source, "-o", tmp_path / "out", "--scheme", "FP9", "--json")
    document = json.loads(result.out)
    assert (document["ok"], document["exit_code"], document["result"]) == (False, 2, None)
    assert document["error"]["message"] == "`FP9` is no scheme"


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_every_malformed_source_is_one_sentence_and_leaves_nothing(fp8: Fp8, tmp_path: Path, case: Malformed) -> None:
    case.build(tmp_path / "source")
    before = sorted(path.name for path in tmp_path.iterdir())
    result = fp8("quantize", tmp_path / "source", "-o", tmp_path / "out")
    assert result.code == 3, result.err
    assert result.err.startswith("error: ")
    assert re.search(case.message, result.err.splitlines()[0])
    assert "Traceback" not in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_quantized_source_is_named_and_refused(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    fp8("quantize", source, "-o", tmp_path / "once")
    result = fp8("quantize", tmp_path / "once", "-o", tmp_path / "twice")
    assert result.code == 3
    assert "is in FP8 already (compressed-tensors: E4M3 weights per channel" in result.err
    assert "which is FP8_DYNAMIC: there is nothing to quantize" in result.err
    assert not (tmp_path / "twice").exists()


def test_a_missing_tensor_and_a_wrong_shape_are_named(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    tensors = load_file(copy / "model.safetensors")
    whole = dict(tensors)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    result = fp8("quantize", copy, "-o", tmp_path / "out")
    assert result.code == 3
    assert "`model.layers.1.self_attn.k_proj.weight`" in result.err
    whole["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(128, 128, dtype=torch.bfloat16)
    save_file(whole, copy / "model.safetensors", metadata={"format": "pt"})
    result = fp8("quantize", copy, "-o", tmp_path / "out")
    assert result.code == 3
    assert "[128, 128]" in result.err
    assert "[64, 128]" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_an_output_that_exists_is_refused_and_replaced_only_when_asked(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    fp8("quantize", source, "-o", tmp_path / "out")
    (tmp_path / "out" / "mark").write_text("")
    result = fp8("quantize", source, "-o", tmp_path / "out")
    assert result.code == 2
    assert "exists already" in result.err
    assert (tmp_path / "out" / "mark").exists()
    assert fp8("quantize", source, "-o", tmp_path / "out", "--overwrite").code == 0
    assert not (tmp_path / "out" / "mark").exists()
    assert not partial_folder(tmp_path / "out").exists()


def test_a_failed_overwrite_leaves_the_old_output(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    fp8("quantize", copy, "-o", tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert fp8("quantize", copy, "-o", tmp_path / "out", "--overwrite").code == 3
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_sizes_no_block_fits_are_warned_about(fp8: Fp8, tmp_path: Path) -> None:
    model = save_model(tmp_path / "source", llama_config(**ODD))
    result = fp8("quantize", model, "-o", tmp_path / "out", "--scheme", "FP8_BLOCK")
    assert result.code == 0
    assert result.err == (
        "warning: vLLM cannot load it on one GPU: `model.layers.{0,1}.mlp.gate_proj.weight` [344, 208]: the part that "
        "is merged with others is 344, no multiple of its blocks of 128 (and 2 more); FP8_DYNAMIC has no such limit\n"
    )


def test_a_terabyte_is_planned_from_its_headers(fp8: Fp8, tmp_path: Path) -> None:
    """A sparse file of 1.6 TB: a hundred layers of a very wide Llama."""
    folder = tmp_path / "huge"
    folder.mkdir()
    hidden, intermediate, layers, vocab = 24576, 98304, 80, 32000
    config = llama_config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=192,
        num_key_value_heads=192,
        vocab_size=vocab,
    )
    document = {**config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(document))
    tensors = [("model.norm.weight", "BF16", (hidden,))]
    tensors += [(f"{name}.weight", "BF16", (vocab, hidden)) for name in ("model.embed_tokens", "lm_head")]
    for layer in range(layers):
        square = [f"self_attn.{name}_proj" for name in "qkvo"]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(square, (hidden, hidden))
        shapes |= dict.fromkeys(["mlp.gate_proj", "mlp.up_proj"], (intermediate, hidden))
        shapes |= {"mlp.down_proj": (hidden, intermediate)}
        shapes |= dict.fromkeys(["input_layernorm", "post_attention_layernorm"], (hidden,))
        tensors += [(f"model.layers.{layer}.{name}.weight", "BF16", shape) for name, shape in shapes.items()]
    head, header = lay_out(tensors, {"format": "pt"})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(header.file_bytes)
    result = fp8("quantize", folder, "-o", tmp_path / "out", "--dry-run", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)["result"]
    assert sum(report["bytes_before"].values()) == header.file_bytes - header.data_begin > 10**12
    # It does not fit on this disk, and a real run says so before it writes.
    refused = fp8("quantize", folder, "-o", tmp_path / "out")
    assert refused.code == 3
    assert "disk space" in refused.err
    assert not partial_folder(tmp_path / "out").exists()


def test_tied_embeddings_keep_one_table(fp8: Fp8, tmp_path: Path) -> None:
    model = save_model(tmp_path / "source", qwen2_config())
    assert fp8("quantize", model, "-o", tmp_path / "out").code == 0
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_the_result_of_inspect_agrees_with_the_report(fp8: Fp8, source: Path, tmp_path: Path) -> None:
    report = json.loads(fp8("quantize", source, "-o", tmp_path / "out", "--json").out)["result"]
    shown = json.loads(fp8("inspect", tmp_path / "out", "--json").out)["result"]
    assert {row["dtype"]: row["bytes"] for row in shown["dtypes"]} == report["bytes_after"]
