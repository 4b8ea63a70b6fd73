"""What `fp8 inspect` prints, whole: on terminals of 80 and 120 columns, into a pipe, as Markdown, CSV and ASCII.

The checkpoints are the bundled model, quantized, and a copy damaged in six ways; the GPU is always named, so that
no screen depends on the machine.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fp8cli.commands.inspect import InspectRequest, run
from tests.inspecting import fp8_inspect, printed
from tests.planting import STORIES, Tensors, change, change_config, quantize_stories


def damage(tensors: Tensors) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    tensors["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(7, 3, dtype=torch.bfloat16)
    tensors["model.layers.1.mlp.down_proj.weight_scale"][3] = float("nan")
    tensors["model.layers.2.mlp.down_proj.weight_scale"][5] = 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay down the source, its two FP8 forms and a damaged one, under short names."""
    folder = tmp_path_factory.mktemp("screens")
    shutil.copytree(STORIES, folder / "stories")
    healthy = quantize_stories(folder / "stories-FP8-dynamic")
    quantize_stories(folder / "stories-FP8-block", "FP8_BLOCK")
    damaged = change(healthy, folder / "damaged", damage)
    change_config(damaged, lambda config: config["quantization_config"]["ignore"].append("model.layers.2.mlp.up_proj"))
    (damaged / "model.safetensors").chmod(0o600)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def screen(source: str, width: int | None = None, *, details: bool = False, **wishes: object) -> str:
    request = InspectRequest(**{"source": source, "gpus": ("H100",), "details": details, **wishes})  # type: ignore[arg-type]
    return printed(run(request), width=width, details=details)


def section(text: str, title: str) -> str:
    """Cut out one section of a screen."""
    found = [part for part in text.split("\n\n") if part.startswith(f"{title}\n")]
    assert len(found) == 1
    return f"{found[0].rstrip()}\n"


def test_a_healthy_checkpoint_into_a_pipe() -> None:
    assert screen("stories-FP8-dynamic") == (
        """\
stories-FP8-dynamic · LlamaForCausalLM · FP8_DYNAMIC
E4M3 weights per channel, activations per token at run time (compressed-tensors, float-quantized)
ignored: lm_head

dtype                tensors  parameters  mem (MB)    share
torch.bfloat16            30     328,576  0.664064   57.5 %
torch.float8_e4m3fn       21     491,520  0.491520   42.5 %
total                     51     820,096  1.155584  100.0 %
0.00116 GB = 0.00108 GiB in 1 file · headers 5,528 bytes

by role
role                dtype          tensors  parameters  mem (MB)    share  bits/weight
quantized weights   float8_e4m3fn       21     491,520  0.491520   42.5 %         8.00
scales              bfloat16            21           0  0.006912    0.6 %
unquantized Linear  bfloat16             1     163,840  0.327680   28.4 %        16.00
embeddings          bfloat16             1     163,840  0.327680   28.4 %        16.00
norms               bfloat16             7         896  0.001792    0.2 %        16.00
total                                   51     820,096  1.155584  100.0 %        11.27

will it run
weights 0.00116 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
GPU   GPUs  longest context  computes
H100     1              512  in FP8 (W8A8)
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories-FP8-dynamic

checks
19 checks passed; --details lists them

healthy: 19 passed
"""
    )


def test_a_healthy_checkpoint_on_80_columns() -> None:
    assert screen("stories-FP8-dynamic", 80) == (
        """\
stories-FP8-dynamic · LlamaForCausalLM · FP8_DYNAMIC
E4M3 weights per channel, activations per token at run time (compressed-tensors,
float-quantized)
ignored: lm_head

╭─────────────────────┬─────────┬────────────┬──────────┬─────────╮
│ dtype               │ tensors │ parameters │ mem (MB) │   share │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ torch.bfloat16      │      30 │    328,576 │ 0.664064 │  57.5 % │
│ torch.float8_e4m3fn │      21 │    491,520 │ 0.491520 │  42.5 % │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ total               │      51 │    820,096 │ 1.155584 │ 100.0 % │
╰─────────────────────┴─────────┴────────────┴──────────┴─────────╯
0.00116 GB = 0.00108 GiB in 1 file · headers 5,528 bytes

by role
╭────────────────────┬───────────────┬────────────┬──────────┬─────────────╮
│ role               │ dtype         │ parameters │ mem (MB) │ bits/weight │
├────────────────────┼───────────────┼────────────┼──────────┼─────────────┤
│ quantized weights  │ float8_e4m3fn │    491,520 │ 0.491520 │        8.00 │
│ scales             │ bfloat16      │          0 │ 0.006912 │             │
│ unquantized Linear │ bfloat16      │    163,840 │ 0.327680 │       16.00 │
│ embeddings         │ bfloat16      │    163,840 │ 0.327680 │       16.00 │
│ norms              │ bfloat16      │        896 │ 0.001792 │       16.00 │
├────────────────────┼───────────────┼────────────┼──────────┼─────────────┤
│ total              │               │    820,096 │ 1.155584 │       11.27 │
╰────────────────────┴───────────────┴────────────┴──────────┴─────────────╯

will it run
weights 0.00116 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out
to 8 GPUs; nor 16
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
╭──────┬──────┬─────────────────┬───────────────╮
│ GPU  │ GPUs │ longest context │ computes      │
├──────┼──────┼─────────────────┼───────────────┤
│ H100 │    1 │             512 │ in FP8 (W8A8) │
╰──────┴──────┴─────────────────┴───────────────╯
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories-FP8-dynamic

checks
19 checks passed; --details lists them

healthy: 19 passed
"""
    )


def test_a_healthy_checkpoint_on_120_columns_with_details() -> None:
    assert screen("stories-FP8-dynamic", 120, details=True) == (
        """\
stories-FP8-dynamic · LlamaForCausalLM · FP8_DYNAMIC
E4M3 weights per channel, activations per token at run time (compressed-tensors, float-quantized)
ignored: lm_head

╭─────────────────────┬─────────┬────────────┬──────────┬─────────╮
│ dtype               │ tensors │ parameters │ mem (MB) │   share │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ torch.bfloat16      │      30 │    328,576 │ 0.664064 │  57.5 % │
│ torch.float8_e4m3fn │      21 │    491,520 │ 0.491520 │  42.5 % │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ total               │      51 │    820,096 │ 1.155584 │ 100.0 % │
╰─────────────────────┴─────────┴────────────┴──────────┴─────────╯
0.00116 GB = 0.00108 GiB in 1 file · headers 5,528 bytes

by role
╭────────────────────┬───────────────┬─────────┬────────────┬──────────┬─────────┬─────────────╮
│ role               │ dtype         │ tensors │ parameters │ mem (MB) │   share │ bits/weight │
├────────────────────┼───────────────┼─────────┼────────────┼──────────┼─────────┼─────────────┤
│ quantized weights  │ float8_e4m3fn │      21 │    491,520 │ 0.491520 │  42.5 % │        8.00 │
│ scales             │ bfloat16      │      21 │          0 │ 0.006912 │   0.6 % │             │
│ unquantized Linear │ bfloat16      │       1 │    163,840 │ 0.327680 │  28.4 % │       16.00 │
│ embeddings         │ bfloat16      │       1 │    163,840 │ 0.327680 │  28.4 % │       16.00 │
│ norms              │ bfloat16      │       7 │        896 │ 0.001792 │   0.2 % │       16.00 │
├────────────────────┼───────────────┼─────────┼────────────┼──────────┼─────────┼─────────────┤
│ total              │               │      51 │    820,096 │ 1.155584 │ 100.0 % │       11.27 │
╰────────────────────┴───────────────┴─────────┴────────────┴──────────┴─────────┴─────────────╯

will it run
weights 0.00116 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1, 2, 4 work
tensor parallel 8 refused: 4 attention heads cannot be dealt out to 8 GPUs
tensor parallel 16 refused: 4 attention heads cannot be dealt out to 16 GPUs
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
╭──────┬──────┬─────────────────┬───────────────╮
│ GPU  │ GPUs │ longest context │ computes      │
├──────┼──────┼─────────────────┼───────────────┤
│ H100 │    1 │             512 │ in FP8 (W8A8) │
╰──────┴──────┴─────────────────┴───────────────╯
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories-FP8-dynamic

what vLLM makes of it
╭────────────┬─────────────────────────────────────┬────────────────────┬──────────────╮
│ capability │ GPUs                                │ computes           │ options      │
├────────────┼─────────────────────────────────────┼────────────────────┼──────────────┤
│ 7.0        │ Volta: V100                         │ not at all         │              │
│ 7.5        │ Turing: T4, RTX 20                  │ in 16 bits (W8A16) │ --dtype half │
│ 8.0        │ Ampere: A100, A30                   │ in 16 bits (W8A16) │              │
│ 8.6        │ Ampere: A10, A40, RTX A6000, RTX 30 │ in 16 bits (W8A16) │              │
│ 8.9        │ Ada: L4, L40S, RTX 40               │ in FP8 (W8A8)      │              │
│ 9.0        │ Hopper: H100, H200, GH200           │ in FP8 (W8A8)      │              │
│ 10.0       │ Blackwell: B200, GB200              │ in FP8 (W8A8)      │              │
│ 10.3       │ Blackwell: B300, GB300              │ in FP8 (W8A8)      │              │
│ 12.0       │ Blackwell: RTX PRO 6000, RTX 50     │ in FP8 (W8A8)      │              │
╰────────────┴─────────────────────────────────────┴────────────────────┴──────────────╯
╭───────┬──────────────────────────────────────────────────┬───────────────╮
│ vLLM  │ for                                              │ not in        │
├───────┼──────────────────────────────────────────────────┼───────────────┤
│ 0.5.3 │ FP8 with dynamic activations, compressed-tensors │ 0.5.2         │
│ 0.5.0 │ `LlamaForCausalLM`                               │ not looked at │
╰───────┴──────────────────────────────────────────────────┴───────────────╯

tensors
╭────────────────────────────────────────────────────────┬────────────────────┬───────────────┬─────────────┬──────────╮
│ tensor                                                 │ role               │ dtype         │ shape       │ mem (MB) │
├────────────────────────────────────────────────────────┼────────────────────┼───────────────┼─────────────┼──────────┤
│ lm_head.weight                                         │ unquantized Linear │ bfloat16      │ [1280, 128] │ 0.327680 │
│ model.embed_tokens.weight                              │ embeddings         │ bfloat16      │ [1280, 128] │ 0.327680 │
│ model.layers.{0..2}.input_layernorm.weight ×3          │ norms              │ bfloat16      │ [128]       │ 0.000768 │
│ model.layers.{0..2}.mlp.down_proj.weight ×3            │ quantized weights  │ float8_e4m3fn │ [128, 256]  │ 0.098304 │
│ model.layers.{0..2}.mlp.down_proj.weight_scale ×3      │ scales             │ bfloat16      │ [128, 1]    │ 0.000768 │
│ model.layers.{0..2}.mlp.gate_proj.weight ×3            │ quantized weights  │ float8_e4m3fn │ [256, 128]  │ 0.098304 │
│ model.layers.{0..2}.mlp.gate_proj.weight_scale ×3      │ scales             │ bfloat16      │ [256, 1]    │ 0.001536 │
│ model.layers.{0..2}.mlp.up_proj.weight ×3              │ quantized weights  │ float8_e4m3fn │ [256, 128]  │ 0.098304 │
│ model.layers.{0..2}.mlp.up_proj.weight_scale ×3        │ scales             │ bfloat16      │ [256, 1]    │ 0.001536 │
│ model.layers.{0..2}.post_attention_layernorm.weight ×3 │ norms              │ bfloat16      │ [128]       │ 0.000768 │
│ model.layers.{0..2}.self_attn.k_proj.weight ×3         │ quantized weights  │ float8_e4m3fn │ [128, 128]  │ 0.049152 │
│ model.layers.{0..2}.self_attn.k_proj.weight_scale ×3   │ scales             │ bfloat16      │ [128, 1]    │ 0.000768 │
│ model.layers.{0..2}.self_attn.o_proj.weight ×3         │ quantized weights  │ float8_e4m3fn │ [128, 128]  │ 0.049152 │
│ model.layers.{0..2}.self_attn.o_proj.weight_scale ×3   │ scales             │ bfloat16      │ [128, 1]    │ 0.000768 │
│ model.layers.{0..2}.self_attn.q_proj.weight ×3         │ quantized weights  │ float8_e4m3fn │ [128, 128]  │ 0.049152 │
│ model.layers.{0..2}.self_attn.q_proj.weight_scale ×3   │ scales             │ bfloat16      │ [128, 1]    │ 0.000768 │
│ model.layers.{0..2}.self_attn.v_proj.weight ×3         │ quantized weights  │ float8_e4m3fn │ [128, 128]  │ 0.049152 │
│ model.layers.{0..2}.self_attn.v_proj.weight_scale ×3   │ scales             │ bfloat16      │ [128, 1]    │ 0.000768 │
│ model.norm.weight                                      │ norms              │ bfloat16      │ [128]       │ 0.000256 │
╰────────────────────────────────────────────────────────┴────────────────────┴───────────────┴─────────────┴──────────╯

checks
✓ passed       config               `config.json` is a JSON object
✓ passed       config.side          `generation_config.json`: valid JSON
✓ passed       file.header          1 header read, well-formed
✓ passed       file.size            1 weight file: no byte missing, unused or used twice
✓ passed       index                51 tensors in `model.safetensors`, which needs no index
✓ passed       file.side            7 side files, each can be read, none is empty, broken JSON or a pointer
✓ passed       file.mode            10 files, each open to more users than its owner
✓ passed       config.quantization  config and tensors agree: E4M3 weights per channel, activations per token at run
                                    time
✓ passed       scale.missing        21 FP8 weights, each with its scale
✓ passed       scale.orphan         no scale without a quantized weight
✓ passed       scale.zero_point     no zero point beside a weight that needs none
✓ passed       scale.name           every scale under the name that loaders look for
✓ passed       scale.shape          21 scales of the shape that the config asks for
✓ passed       scale.dtype          21 scales in BF16
✓ passed       config.modules       21 Linear modules quantized, the other 1 left alone; none of them is listed as
                                    ignored
✓ passed       tensor.missing       30 tensors: all that `LlamaForCausalLM` with 3 layers needs, in its shapes
✓ passed       tensor.unknown       no tensor that the architecture does not have
✓ passed       scale.values         3,456 scales in 21 tensors read: all finite and positive
✓ passed       provenance           `fp8.json`: made from `stories-llama` by fp8 quantize, with the SHA-256 of 9 files;
                                    fp8 verify compares them

healthy: 19 passed
"""
    )


def test_a_damaged_checkpoint_on_80_columns() -> None:
    assert screen("damaged", 80) == (
        """\
damaged · LlamaForCausalLM · FP8_DYNAMIC
E4M3 weights per channel, activations per token at run time (compressed-tensors,
float-quantized)
ignored: lm_head, model.layers.2.mlp.up_proj

╭─────────────────────┬─────────┬────────────┬──────────┬─────────╮
│ dtype               │ tensors │ parameters │ mem (MB) │   share │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ torch.bfloat16      │      29 │    328,576 │ 0.663338 │  57.4 % │
│ torch.float8_e4m3fn │      21 │    491,520 │ 0.491520 │  42.6 % │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ total               │      50 │    820,096 │ 1.154858 │ 100.0 % │
╰─────────────────────┴─────────┴────────────┴──────────┴─────────╯
0.00115 GB = 0.00108 GiB in 1 file · headers 5,416 bytes

by role
╭────────────────────┬───────────────┬────────────┬──────────┬─────────────╮
│ role               │ dtype         │ parameters │ mem (MB) │ bits/weight │
├────────────────────┼───────────────┼────────────┼──────────┼─────────────┤
│ quantized weights  │ float8_e4m3fn │    491,520 │ 0.491520 │        8.00 │
│ scales             │ bfloat16      │          0 │ 0.006186 │             │
│ unquantized Linear │ bfloat16      │    163,840 │ 0.327680 │       16.00 │
│ embeddings         │ bfloat16      │    163,840 │ 0.327680 │       16.00 │
│ norms              │ bfloat16      │        896 │ 0.001792 │       16.00 │
├────────────────────┼───────────────┼────────────┼──────────┼─────────────┤
│ total              │               │    820,096 │ 1.154858 │       11.27 │
╰────────────────────┴───────────────┴────────────┴──────────┴─────────────╯

will it run
weights 0.00115 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out
to 8 GPUs; nor 16
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
╭──────┬──────┬─────────────────┬───────────────╮
│ GPU  │ GPUs │ longest context │ computes      │
├──────┼──────┼─────────────────┼───────────────┤
│ H100 │    1 │             512 │ in FP8 (W8A8) │
╰──────┴──────┴─────────────────┴───────────────╯
estimates: 92 % of the memory, less a reserve for activations
as if it were whole: it is damaged, see the checks

checks
✗ failed       scale.missing   `model.layers.0.mlp.up_proj.weight` has no scale:
                               `weight_scale` is missing
               so: vLLM loads this without a word and returns NaN
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.shape     `model.layers.0.self_attn.q_proj.weight_scale`
                               has shape [7, 3], but the config asks for [128,
                               1] with a weight [128, 128]
               so: vLLM stops while loading, or scales the wrong rows
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       config.ignored  `model.layers.2.mlp.up_proj.weight` holds codes,
                               but the config lists it as ignored
               so: vLLM keeps this module in 16 bits: it stops at the scale, or
                   takes the codes for weights
               fix: correct quantization_config, or quantize again from the
                    source: fp8 quantize SOURCE
✗ failed       scale.nan       model.layers.1.mlp.down_proj.weight_scale: 1 of
                               128 values is NaN, the first at [3, 0]
               so: every output that this weight takes part in is NaN
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.zero      model.layers.2.mlp.down_proj.weight_scale: 1 of
                               128 values is zero, the first at [5, 0]
               so: everything that it scales is read as zero
               fix: quantize again from the source: fp8 quantize SOURCE
! warning      file.mode       `model.safetensors` can be read by the owner
                               alone: its mode is 0600
               so: a server that runs as another user, as in a container, cannot
                   open it
               fix: chmod go+r damaged/model.safetensors
13 checks passed; --details lists them

damaged: 5 failed, 1 warning, 13 passed
"""
    )


def test_a_damaged_checkpoint_on_120_columns() -> None:
    assert screen("damaged", 120) == (
        """\
damaged · LlamaForCausalLM · FP8_DYNAMIC
E4M3 weights per channel, activations per token at run time (compressed-tensors, float-quantized)
ignored: lm_head, model.layers.2.mlp.up_proj

╭─────────────────────┬─────────┬────────────┬──────────┬─────────╮
│ dtype               │ tensors │ parameters │ mem (MB) │   share │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ torch.bfloat16      │      29 │    328,576 │ 0.663338 │  57.4 % │
│ torch.float8_e4m3fn │      21 │    491,520 │ 0.491520 │  42.6 % │
├─────────────────────┼─────────┼────────────┼──────────┼─────────┤
│ total               │      50 │    820,096 │ 1.154858 │ 100.0 % │
╰─────────────────────┴─────────┴────────────┴──────────┴─────────╯
0.00115 GB = 0.00108 GiB in 1 file · headers 5,416 bytes

by role
╭────────────────────┬───────────────┬─────────┬────────────┬──────────┬─────────┬─────────────╮
│ role               │ dtype         │ tensors │ parameters │ mem (MB) │   share │ bits/weight │
├────────────────────┼───────────────┼─────────┼────────────┼──────────┼─────────┼─────────────┤
│ quantized weights  │ float8_e4m3fn │      21 │    491,520 │ 0.491520 │  42.6 % │        8.00 │
│ scales             │ bfloat16      │      20 │          0 │ 0.006186 │   0.5 % │             │
│ unquantized Linear │ bfloat16      │       1 │    163,840 │ 0.327680 │  28.4 % │       16.00 │
│ embeddings         │ bfloat16      │       1 │    163,840 │ 0.327680 │  28.4 % │       16.00 │
│ norms              │ bfloat16      │       7 │        896 │ 0.001792 │   0.2 % │       16.00 │
├────────────────────┼───────────────┼─────────┼────────────┼──────────┼─────────┼─────────────┤
│ total              │               │      50 │    820,096 │ 1.154858 │ 100.0 % │       11.27 │
╰────────────────────┴───────────────┴─────────┴────────────┴──────────┴─────────┴─────────────╯

will it run
weights 0.00115 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
╭──────┬──────┬─────────────────┬───────────────╮
│ GPU  │ GPUs │ longest context │ computes      │
├──────┼──────┼─────────────────┼───────────────┤
│ H100 │    1 │             512 │ in FP8 (W8A8) │
╰──────┴──────┴─────────────────┴───────────────╯
estimates: 92 % of the memory, less a reserve for activations
as if it were whole: it is damaged, see the checks

checks
✗ failed       scale.missing   `model.layers.0.mlp.up_proj.weight` has no scale: `weight_scale` is missing
               so: vLLM loads this without a word and returns NaN
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.shape     `model.layers.0.self_attn.q_proj.weight_scale` has shape [7, 3], but the config asks for
                               [128, 1] with a weight [128, 128]
               so: vLLM stops while loading, or scales the wrong rows
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       config.ignored  `model.layers.2.mlp.up_proj.weight` holds codes, but the config lists it as ignored
               so: vLLM keeps this module in 16 bits: it stops at the scale, or takes the codes for weights
               fix: correct quantization_config, or quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.nan       model.layers.1.mlp.down_proj.weight_scale: 1 of 128 values is NaN, the first at [3, 0]
               so: every output that this weight takes part in is NaN
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.zero      model.layers.2.mlp.down_proj.weight_scale: 1 of 128 values is zero, the first at [5, 0]
               so: everything that it scales is read as zero
               fix: quantize again from the source: fp8 quantize SOURCE
! warning      file.mode       `model.safetensors` can be read by the owner alone: its mode is 0600
               so: a server that runs as another user, as in a container, cannot open it
               fix: chmod go+r damaged/model.safetensors
13 checks passed; --details lists them

damaged: 5 failed, 1 warning, 13 passed
"""
    )


def test_a_damaged_checkpoint_as_markdown() -> None:
    assert fp8_inspect("damaged", "--markdown").out == (
        """\
# damaged · LlamaForCausalLM · FP8\\_DYNAMIC

E4M3 weights per channel, activations per token at run time (compressed-tensors, float-quantized)

ignored: lm\\_head, model.layers.2.mlp.up\\_proj

| dtype | tensors | parameters | mem (MB) | share |
| --- | ---: | ---: | ---: | ---: |
| torch.bfloat16 | 29 | 328,576 | 0.663338 | 57.4 % |
| torch.float8\\_e4m3fn | 21 | 491,520 | 0.491520 | 42.6 % |
| **total** | **50** | **820,096** | **1.154858** | **100.0 %** |

0.00115 GB = 0.00108 GiB in 1 file · headers 5,416 bytes

## by role

| role | dtype | tensors | parameters | mem (MB) | share | bits/weight |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| quantized weights | float8\\_e4m3fn | 21 | 491,520 | 0.491520 | 42.6 % | 8.00 |
| scales | bfloat16 | 20 | 0 | 0.006186 | 0.5 % |  |
| unquantized Linear | bfloat16 | 1 | 163,840 | 0.327680 | 28.4 % | 16.00 |
| embeddings | bfloat16 | 1 | 163,840 | 0.327680 | 28.4 % | 16.00 |
| norms | bfloat16 | 7 | 896 | 0.001792 | 0.2 % | 16.00 |
| **total** |  | **50** | **820,096** | **1.154858** | **100.0 %** | **11.27** |

## will it run

weights 0.00115 GB = 0.00108 GiB

KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2

tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16

vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors

| GPU | GPUs | longest context | computes |
| --- | ---: | ---: | --- |
| H100 | 1 | 512 | in FP8 (W8A8) |

estimates: 92 % of the memory, less a reserve for activations

as if it were whole: it is damaged, see the checks

## checks

|  | check | what | consequence | remedy |
| --- | --- | --- | --- | --- |
| ✗ failed | scale.missing | model.layers.0.mlp.up\\_proj.weight has no scale: weight\\_scale is missing | vLLM loads this without a word and returns NaN | quantize again from the source: fp8 quantize SOURCE |
| ✗ failed | scale.shape | model.layers.0.self\\_attn.q\\_proj.weight\\_scale has shape \\[7, 3\\], but the config asks for \\[128, 1\\] with a weight \\[128, 128\\] | vLLM stops while loading, or scales the wrong rows | quantize again from the source: fp8 quantize SOURCE |
| ✗ failed | config.ignored | model.layers.2.mlp.up\\_proj.weight holds codes, but the config lists it as ignored | vLLM keeps this module in 16 bits: it stops at the scale, or takes the codes for weights | correct quantization\\_config, or quantize again from the source: fp8 quantize SOURCE |
| ✗ failed | scale.nan | model.layers.1.mlp.down\\_proj.weight\\_scale: 1 of 128 values is NaN, the first at \\[3, 0\\] | every output that this weight takes part in is NaN | quantize again from the source: fp8 quantize SOURCE |
| ✗ failed | scale.zero | model.layers.2.mlp.down\\_proj.weight\\_scale: 1 of 128 values is zero, the first at \\[5, 0\\] | everything that it scales is read as zero | quantize again from the source: fp8 quantize SOURCE |
| ! warning | file.mode | model.safetensors can be read by the owner alone: its mode is 0600 | a server that runs as another user, as in a container, cannot open it | chmod go+r damaged/model.safetensors |

13 checks passed; --details lists them

damaged: 5 failed, 1 warning, 13 passed

"""  # noqa: E501 - as it is printed
    )


def test_blocks_that_cannot_be_split_on_80_columns() -> None:
    assert section(screen("stories-FP8-block", 80), "will it run") == (
        """\
will it run
weights 0.00115 GB = 0.00107 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1 works; 2 refused:
`model.layers.{0..2}.self_attn.k_proj.weight` [128, 128]: the part of each of 2
GPUs is 64, no multiple of its blocks of 128; nor 4, 8, 16; --details has all
reasons
vLLM 0.11.0 or later, 0.16.0 below compute capability 9.0: FP8 in blocks,
compressed-tensors
╭──────┬──────┬─────────────────┬───────────────╮
│ GPU  │ GPUs │ longest context │ computes      │
├──────┼──────┼─────────────────┼───────────────┤
│ H100 │    1 │             512 │ in FP8 (W8A8) │
╰──────┴──────┴─────────────────┴───────────────╯
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories-FP8-block
"""
    )


def test_blocks_that_cannot_be_split_with_every_reason() -> None:
    assert section(screen("stories-FP8-block", 120, details=True), "will it run") == (
        """\
will it run
weights 0.00115 GB = 0.00107 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1 works
tensor parallel 2 refused: `model.layers.{0..2}.self_attn.k_proj.weight` [128, 128]: the part of each of 2 GPUs is 64,
no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.o_proj.weight` [128, 128]: the part of each of 2 GPUs
is 64, no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.q_proj.weight` [128, 128]: the part of each of 2
GPUs is 64, no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.v_proj.weight` [128, 128]: the part of each
of 2 GPUs is 64, no multiple of its blocks of 128
tensor parallel 4 refused: `model.layers.{0..2}.mlp.down_proj.weight` [128, 256]: the part of each of 4 GPUs is 64, no
multiple of its blocks of 128; `model.layers.{0..2}.mlp.gate_proj.weight` [256, 128]: the part of each of 4 GPUs is 64,
no multiple of its blocks of 128; `model.layers.{0..2}.mlp.up_proj.weight` [256, 128]: the part of each of 4 GPUs is 64,
no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.k_proj.weight` [128, 128]: the part of each of 4 GPUs
is 32, no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.o_proj.weight` [128, 128]: the part of each of 4
GPUs is 32, no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.q_proj.weight` [128, 128]: the part of each
of 4 GPUs is 32, no multiple of its blocks of 128; `model.layers.{0..2}.self_attn.v_proj.weight` [128, 128]: the part of
each of 4 GPUs is 32, no multiple of its blocks of 128
tensor parallel 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; `model.layers.{0..2}.mlp.down_proj.weight`
[128, 256]: the part of each of 8 GPUs is 32, no multiple of its blocks of 128;
`model.layers.{0..2}.mlp.gate_proj.weight` [256, 128]: the part of each of 8 GPUs is 32, no multiple of its blocks of
128; `model.layers.{0..2}.mlp.up_proj.weight` [256, 128]: the part of each of 8 GPUs is 32, no multiple of its blocks of
128; `model.layers.{0..2}.self_attn.k_proj.weight` [128, 128]: the part of each of 8 GPUs is 32, no multiple of its
blocks of 128; `model.layers.{0..2}.self_attn.o_proj.weight` [128, 128]: the part of each of 8 GPUs is 16, no multiple
of its blocks of 128; `model.layers.{0..2}.self_attn.q_proj.weight` [128, 128]: the part of each of 8 GPUs is 16, no
multiple of its blocks of 128; `model.layers.{0..2}.self_attn.v_proj.weight` [128, 128]: the part of each of 8 GPUs is
32, no multiple of its blocks of 128
tensor parallel 16 refused: 4 attention heads cannot be dealt out to 16 GPUs; `model.layers.{0..2}.mlp.down_proj.weight`
[128, 256]: the part of each of 16 GPUs is 16, no multiple of its blocks of 128;
`model.layers.{0..2}.mlp.gate_proj.weight` [256, 128]: the part of each of 16 GPUs is 16, no multiple of its blocks of
128; `model.layers.{0..2}.mlp.up_proj.weight` [256, 128]: the part of each of 16 GPUs is 16, no multiple of its blocks
of 128; `model.layers.{0..2}.self_attn.k_proj.weight` [128, 128]: the part of each of 16 GPUs is 32, no multiple of its
blocks of 128; `model.layers.{0..2}.self_attn.o_proj.weight` [128, 128]: the part of each of 16 GPUs is 8, no multiple
of its blocks of 128; `model.layers.{0..2}.self_attn.q_proj.weight` [128, 128]: the part of each of 16 GPUs is 8, no
multiple of its blocks of 128; `model.layers.{0..2}.self_attn.v_proj.weight` [128, 128]: the part of each of 16 GPUs is
32, no multiple of its blocks of 128
vLLM 0.11.0 or later, 0.16.0 below compute capability 9.0: FP8 in blocks, compressed-tensors
╭──────┬──────┬─────────────────┬───────────────╮
│ GPU  │ GPUs │ longest context │ computes      │
├──────┼──────┼─────────────────┼───────────────┤
│ H100 │    1 │             512 │ in FP8 (W8A8) │
╰──────┴──────┴─────────────────┴───────────────╯
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories-FP8-block
"""
    )


def test_the_source_which_is_not_quantized() -> None:
    assert screen("stories", gpus=("T4", "H100", "MI300X")) == (
        """\
stories · LlamaForCausalLM · unquantized BF16
nothing is quantized

dtype           tensors  parameters  mem (MB)    share
torch.bfloat16       30     820,096  1.640192  100.0 %
total                30     820,096  1.640192  100.0 %
0.00164 GB = 0.00153 GiB in 1 file · headers 3,184 bytes

by role
role                dtype     tensors  parameters  mem (MB)    share  bits/weight
unquantized Linear  bfloat16       22     655,360  1.310720   79.9 %        16.00
embeddings          bfloat16        1     163,840  0.327680   20.0 %        16.00
norms               bfloat16        7         896  0.001792    0.1 %        16.00
total                              30     820,096  1.640192  100.0 %        16.00

will it run
weights 0.00164 GB = 0.00153 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16
vLLM 0.5.0 or later: `LlamaForCausalLM`
GPU     GPUs  longest context
T4         1              512
H100       1              512
MI300X     1              512
T4: has no BF16
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories --dtype half  # T4
  vllm serve stories  # H100, MI300X

checks
10 checks passed; --details lists them

healthy: 10 passed
"""
    )


def test_gpus_that_differ_in_what_they_do() -> None:
    assert section(screen("stories-FP8-block", 80, gpus=("V100", "T4", "A100", "H100", "MI300X")), "will it run") == (
        """\
will it run
weights 0.00115 GB = 0.00107 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
tensor parallel: 1 works; 2 refused:
`model.layers.{0..2}.self_attn.k_proj.weight` [128, 128]: the part of each of 2
GPUs is 64, no multiple of its blocks of 128; nor 4, 8, 16; --details has all
reasons
vLLM 0.11.0 or later, 0.16.0 below compute capability 9.0: FP8 in blocks,
compressed-tensors
╭───────────┬──────┬─────────────────┬────────────────────╮
│ GPU       │ GPUs │ longest context │ computes           │
├───────────┼──────┼─────────────────┼────────────────────┤
│ V100-32GB │    - │               - │ not at all         │
│ T4        │    1 │             512 │ in 16 bits (W8A16) │
│ A100-80GB │    1 │             512 │ in 16 bits (W8A16) │
│ H100      │    1 │             512 │ in FP8 (W8A8)      │
│ MI300X    │    1 │             512 │ in FP8 (W8A8)      │
╰───────────┴──────┴─────────────────┴────────────────────╯
V100-32GB: vLLM 0.32 has no kernel for this kind of FP8 on compute capability
7.0
T4: has no BF16
MI300X: its FP8 is E4M3FNUZ: vLLM converts the codes and doubles the scales when
it loads them
estimates: 92 % of the memory, less a reserve for activations
  vllm serve stories-FP8-block --dtype half  # T4
  vllm serve stories-FP8-block  # A100-80GB, H100, MI300X
"""
    )


def test_one_file_by_itself() -> None:
    assert screen("stories-FP8-dynamic/model.safetensors") == (
        """\
model.safetensors · FP8 without a config
E4M3 weights per channel; activations unknown

dtype                tensors  parameters  mem (MB)    share
torch.bfloat16            30     328,576  0.664064   57.5 %
torch.float8_e4m3fn       21     491,520  0.491520   42.5 %
total                     51     820,096  1.155584  100.0 %
0.00116 GB = 0.00108 GiB in 1 file · headers 5,528 bytes

by role
role                dtype          tensors  parameters  mem (MB)    share  bits/weight
quantized weights   float8_e4m3fn       21     491,520  0.491520   42.5 %         8.00
scales              bfloat16            21           0  0.006912    0.6 %
unquantized Linear  bfloat16             1     163,840  0.327680   28.4 %        16.00
embeddings          bfloat16             1     163,840  0.327680   28.4 %        16.00
norms               bfloat16             7         896  0.001792    0.2 %        16.00
total                                   51     820,096  1.155584  100.0 %        11.27

will it run
weights 0.00116 GB = 0.00108 GiB
KV cache unknown: there is no config.json to tell
tensor parallel: 1 works; 2 not checked: its config.json does not say how many heads there are; nor 4, 8, 16
which vLLM it takes is not known: its kind of FP8: no config says what it is
GPU   GPUs  longest context  computes
H100     -                -  unknown
H100: the weights fit, but the KV cache is unknown: there is no config.json to tell
estimates: 92 % of the memory, less a reserve for activations

checks
- not checked  config               `stories-FP8-dynamic/model.safetensors` is looked at by itself, without a `config.json`
- not checked  index                a file is looked at by itself: whether others belong to it is not known
- not checked  config.quantization  there is no readable config.json to say how these tensors are meant
- not checked  tensor.missing       without config.json nothing says which tensors there must be
10 checks passed; --details lists them

no fault found: 4 not checked, 10 passed
"""  # noqa: E501 - as it is printed
    )


def test_a_comparison_on_80_columns() -> None:
    assert section(screen("damaged", 80, against="stories"), "against stories") == (
        """\
against stories
9 copied, 21 quantized · 0.00264 GB compared
all quantized weights together: no signal, for 1 of 19 have none
╭─────────────────────────────────┬───────────┬───────────────┬───────────╮
│ worst first                     │ SQNR (dB) │ largest error │ at        │
├─────────────────────────────────┼───────────┼───────────────┼───────────┤
│ model.layers.1.mlp.down_proj    │ no signal │        0.0149 │ [18, 71]  │
│ model.layers.2.mlp.down_proj    │     20.00 │         0.418 │ [5, 171]  │
│ model.layers.0.mlp.down_proj    │     31.64 │        0.0146 │ [5, 73]   │
│ model.layers.0.self_attn.o_proj │     31.65 │        0.0144 │ [46, 105] │
│ model.layers.2.self_attn.v_proj │     31.66 │        0.0181 │ [107, 94] │
│ model.layers.2.self_attn.o_proj │     31.66 │        0.0168 │ [127, 82] │
│ model.layers.1.self_attn.o_proj │     31.70 │        0.0166 │ [52, 62]  │
│ model.layers.1.self_attn.k_proj │     31.70 │         0.012 │ [26, 61]  │
╰─────────────────────────────────┴───────────┴───────────────┴───────────╯
"""
    )


def test_what_a_verification_adds() -> None:
    assert section(screen("damaged", verify=True, against="stories"), "checks") == (
        """\
checks
✗ failed       scale.missing     `model.layers.0.mlp.up_proj.weight` has no scale: `weight_scale` is missing
               so: vLLM loads this without a word and returns NaN
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.shape       `model.layers.0.self_attn.q_proj.weight_scale` has shape [7, 3], but the config asks for [128, 1] with a weight [128, 128]
               so: vLLM stops while loading, or scales the wrong rows
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       config.ignored    `model.layers.2.mlp.up_proj.weight` holds codes, but the config lists it as ignored
               so: vLLM keeps this module in 16 bits: it stops at the scale, or takes the codes for weights
               fix: correct quantization_config, or quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.nan         model.layers.1.mlp.down_proj.weight_scale: 1 of 128 values is NaN, the first at [3, 0]
               so: every output that this weight takes part in is NaN
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       scale.zero        model.layers.2.mlp.down_proj.weight_scale: 1 of 128 values is zero, the first at [5, 0]
               so: everything that it scales is read as zero
               fix: quantize again from the source: fp8 quantize SOURCE
✗ failed       against.sqnr      model.layers.1.mlp.down_proj.weight: it has nothing in common with the source: it decodes to NaN, or to something where the source is zero
               so: these codes and scales stand for other weights
               fix: quantize again from this source, or name the source it was really made from
! warning      file.mode         `model.safetensors` can be read by the owner alone: its mode is 0600
               so: a server that runs as another user, as in a container, cannot open it
               fix: chmod go+r damaged/model.safetensors
! warning      against.sqnr      model.layers.2.mlp.down_proj.weight: 20.0 dB from the source, where E4M3 gives about 31.5 dB; the largest error is 0.418 at [5, 171]
               so: precision was lost: a scale that does not fit, or values that were cut off
               fix: quantize again from this source; if it stays so, another scheme may fit these weights better
- not checked  hash.sha256       no SHA-256 was stored with these files: they are in no Hub cache, and no fp8.json or SHA256SUMS lists them
- not checked  against.compared  model.layers.0.mlp.up_proj.weight: not compared with the source: it has no scale
- not checked  against.compared  model.layers.0.self_attn.q_proj.weight: not compared with the source: the shape of its scale fits no scheme
18 checks passed; --details lists them
"""  # noqa: E501 - as it is printed
    )


def test_a_longer_context_than_the_model_goes() -> None:
    assert section(screen("stories-FP8-dynamic", contexts=(256, 4096)), "will it run") == (
        """\
will it run
weights 0.00116 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers × 4 KV heads × 32 × 2
KV cache of 256 tokens: 0.000366 GiB
KV cache of 4,096 tokens: 0.00586 GiB, longer than the model goes
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
GPU   GPUs  longest context  computes
H100     -                -  in FP8 (W8A8)
H100: the model goes as far as 512 tokens, not 4,096
estimates: 92 % of the memory, less a reserve for activations
"""
    )


def test_tensors_on_80_columns() -> None:
    assert section(screen("stories-FP8-dynamic", 80, details=True), "tensors") == (
        """\
tensors
╭───────────────────────────────────────────────────┬───────────────┬──────────╮
│ tensor                                            │ dtype         │ mem (MB) │
├───────────────────────────────────────────────────┼───────────────┼──────────┤
│ lm_head.weight                                    │ bfloat16      │ 0.327680 │
│ model.embed_tokens.weight                         │ bfloat16      │ 0.327680 │
│ model.layers.{0..2}.input_layernorm.weight ×3     │ bfloat16      │ 0.000768 │
│ model.layers.{0..2}.mlp.down_proj.weight ×3       │ float8_e4m3fn │ 0.098304 │
│ model.layers.{0..2}.mlp.down_proj.weight_scale ×3 │ bfloat16      │ 0.000768 │
│ model.layers.{0..2}.mlp.gate_proj.weight ×3       │ float8_e4m3fn │ 0.098304 │
│ model.layers.{0..2}.mlp.gate_proj.weight_scale ×3 │ bfloat16      │ 0.001536 │
│ model.layers.{0..2}.mlp.up_proj.weight ×3         │ float8_e4m3fn │ 0.098304 │
│ model.layers.{0..2}.mlp.up_proj.weight_scale ×3   │ bfloat16      │ 0.001536 │
│ model.layers.{0.…st_attention_layernorm.weight ×3 │ bfloat16      │ 0.000768 │
│ model.layers.{0..2}.self_attn.k_proj.weight ×3    │ float8_e4m3fn │ 0.049152 │
│ model.layers.{0.…self_attn.k_proj.weight_scale ×3 │ bfloat16      │ 0.000768 │
│ model.layers.{0..2}.self_attn.o_proj.weight ×3    │ float8_e4m3fn │ 0.049152 │
│ model.layers.{0.…self_attn.o_proj.weight_scale ×3 │ bfloat16      │ 0.000768 │
│ model.layers.{0..2}.self_attn.q_proj.weight ×3    │ float8_e4m3fn │ 0.049152 │
│ model.layers.{0.…self_attn.q_proj.weight_scale ×3 │ bfloat16      │ 0.000768 │
│ model.layers.{0..2}.self_attn.v_proj.weight ×3    │ float8_e4m3fn │ 0.049152 │
│ model.layers.{0.…self_attn.v_proj.weight_scale ×3 │ bfloat16      │ 0.000768 │
│ model.norm.weight                                 │ bfloat16      │ 0.000256 │
╰───────────────────────────────────────────────────┴───────────────┴──────────╯
"""
    )


def test_a_stream_that_has_ascii_alone() -> None:
    command = [sys.executable, "-m", "fp8cli", "inspect", "damaged", "--gpu", "H100"]
    finished = subprocess.run(command, check=False, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (finished.returncode, finished.stderr) == (1, b"")
    assert finished.stdout.decode("ascii") == (
        """\
damaged - LlamaForCausalLM - FP8_DYNAMIC
E4M3 weights per channel, activations per token at run time (compressed-tensors, float-quantized)
ignored: lm_head, model.layers.2.mlp.up_proj

dtype                tensors  parameters  mem (MB)    share
torch.bfloat16            29     328,576  0.663338   57.4 %
torch.float8_e4m3fn       21     491,520  0.491520   42.6 %
total                     50     820,096  1.154858  100.0 %
0.00115 GB = 0.00108 GiB in 1 file - headers 5,416 bytes

by role
role                dtype          tensors  parameters  mem (MB)    share  bits/weight
quantized weights   float8_e4m3fn       21     491,520  0.491520   42.6 %         8.00
scales              bfloat16            20           0  0.006186    0.5 %
unquantized Linear  bfloat16             1     163,840  0.327680   28.4 %        16.00
embeddings          bfloat16             1     163,840  0.327680   28.4 %        16.00
norms               bfloat16             7         896  0.001792    0.2 %        16.00
total                                   50     820,096  1.154858  100.0 %        11.27

will it run
weights 0.00115 GB = 0.00108 GiB
KV cache 1,536 bytes a token in BF16: 3 layers x 4 KV heads x 32 x 2
tensor parallel: 1, 2, 4 work; 8 refused: 4 attention heads cannot be dealt out to 8 GPUs; nor 16
vLLM 0.5.3 or later: FP8 with dynamic activations, compressed-tensors
GPU   GPUs  longest context  computes
H100     1              512  in FP8 (W8A8)
estimates: 92 % of the memory, less a reserve for activations
as if it were whole: it is damaged, see the checks

checks
FAIL failed       scale.missing   `model.layers.0.mlp.up_proj.weight` has no scale: `weight_scale` is missing
                  so: vLLM loads this without a word and returns NaN
                  fix: quantize again from the source: fp8 quantize SOURCE
FAIL failed       scale.shape     `model.layers.0.self_attn.q_proj.weight_scale` has shape [7, 3], but the config asks for [128, 1] with a weight [128, 128]
                  so: vLLM stops while loading, or scales the wrong rows
                  fix: quantize again from the source: fp8 quantize SOURCE
FAIL failed       config.ignored  `model.layers.2.mlp.up_proj.weight` holds codes, but the config lists it as ignored
                  so: vLLM keeps this module in 16 bits: it stops at the scale, or takes the codes for weights
                  fix: correct quantization_config, or quantize again from the source: fp8 quantize SOURCE
FAIL failed       scale.nan       model.layers.1.mlp.down_proj.weight_scale: 1 of 128 values is NaN, the first at [3, 0]
                  so: every output that this weight takes part in is NaN
                  fix: quantize again from the source: fp8 quantize SOURCE
FAIL failed       scale.zero      model.layers.2.mlp.down_proj.weight_scale: 1 of 128 values is zero, the first at [5, 0]
                  so: everything that it scales is read as zero
                  fix: quantize again from the source: fp8 quantize SOURCE
!    warning      file.mode       `model.safetensors` can be read by the owner alone: its mode is 0600
                  so: a server that runs as another user, as in a container, cannot open it
                  fix: chmod go+r damaged/model.safetensors
13 checks passed; --details lists them

damaged: 5 failed, 1 warning, 13 passed
"""  # noqa: E501 - as it is printed
    )


def test_every_tensor_as_a_line_of_csv() -> None:
    assert fp8_inspect("damaged", "--csv", "--against", "stories").out == (
        """\
tensor,file,role,dtype,shape,parameters,bytes,sqnr_db,largest_error
lm_head.weight,model.safetensors,unquantized Linear,torch.bfloat16,1280x128,163840,327680,,
model.embed_tokens.weight,model.safetensors,embeddings,torch.bfloat16,1280x128,163840,327680,,
model.layers.0.input_layernorm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
model.layers.0.mlp.down_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x256,32768,32768,31.641,0.0146484
model.layers.0.mlp.down_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.0.mlp.gate_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,256x128,32768,32768,31.770,0.0146484
model.layers.0.mlp.gate_proj.weight_scale,model.safetensors,scales,torch.bfloat16,256x1,0,512,,
model.layers.0.mlp.up_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,256x128,32768,32768,,
model.layers.0.post_attention_layernorm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
model.layers.0.self_attn.k_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.850,0.013916
model.layers.0.self_attn.k_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.0.self_attn.o_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.654,0.0144043
model.layers.0.self_attn.o_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.0.self_attn.q_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,,
model.layers.0.self_attn.q_proj.weight_scale,model.safetensors,scales,torch.bfloat16,7x3,0,42,,
model.layers.0.self_attn.v_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.775,0.0146484
model.layers.0.self_attn.v_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.1.input_layernorm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
model.layers.1.mlp.down_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x256,32768,32768,-inf,0.0148926
model.layers.1.mlp.down_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.1.mlp.gate_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,256x128,32768,32768,31.830,0.0129395
model.layers.1.mlp.gate_proj.weight_scale,model.safetensors,scales,torch.bfloat16,256x1,0,512,,
model.layers.1.mlp.up_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,256x128,32768,32768,31.755,0.0131836
model.layers.1.mlp.up_proj.weight_scale,model.safetensors,scales,torch.bfloat16,256x1,0,512,,
model.layers.1.post_attention_layernorm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
model.layers.1.self_attn.k_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.700,0.0119629
model.layers.1.self_attn.k_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.1.self_attn.o_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.698,0.0166016
model.layers.1.self_attn.o_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.1.self_attn.q_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.813,0.0126953
model.layers.1.self_attn.q_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.1.self_attn.v_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.745,0.0163574
model.layers.1.self_attn.v_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.2.input_layernorm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
model.layers.2.mlp.down_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x256,32768,32768,20.002,0.417969
model.layers.2.mlp.down_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.2.mlp.gate_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,256x128,32768,32768,31.739,0.0151367
model.layers.2.mlp.gate_proj.weight_scale,model.safetensors,scales,torch.bfloat16,256x1,0,512,,
model.layers.2.mlp.up_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,256x128,32768,32768,31.744,0.0144043
model.layers.2.mlp.up_proj.weight_scale,model.safetensors,scales,torch.bfloat16,256x1,0,512,,
model.layers.2.post_attention_layernorm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
model.layers.2.self_attn.k_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.701,0.0141602
model.layers.2.self_attn.k_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.2.self_attn.o_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.663,0.0168457
model.layers.2.self_attn.o_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.2.self_attn.q_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.793,0.0126953
model.layers.2.self_attn.q_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.layers.2.self_attn.v_proj.weight,model.safetensors,quantized weights,torch.float8_e4m3fn,128x128,16384,16384,31.659,0.0180664
model.layers.2.self_attn.v_proj.weight_scale,model.safetensors,scales,torch.bfloat16,128x1,0,256,,
model.norm.weight,model.safetensors,norms,torch.bfloat16,128,128,256,,
"""  # noqa: E501 - as it is printed
    )
