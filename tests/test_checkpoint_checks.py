"""checkpoint_checks: does this checkpoint run here? Llama-3-8B in FP8 as a file of holes, on GPUs made by hand.

Its weights are 9,083,953,152 bytes and its KV cache takes 131,072 bytes per token, so that every verdict can be
worked out: 0.92 × memory − weights / GPUs − the larger of 4 % of the memory and 1.5 GiB.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from fp8cli.commands.doctor import DoctorReport, DoctorRequest, run
from fp8cli.core.doctor.candidate import Candidate, look_at
from fp8cli.core.doctor.checkpoint_checks import check_fit, check_mode, check_room, check_unpacked, check_whole
from fp8cli.core.doctor.environment import Check
from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpus, find_gpus
from fp8cli.core.machine.probes import Memory
from fp8cli.formats.safetensors import lay_out
from tests.dialects import make
from tests.staged_machine import FULL, interpreter, lay_out_kernel, settled, stage
from tests.stand_in_nvml import A100, GIB, H100, L4, L40S, T4, V100, Model, Nvml
from tests.test_doctor import printed

FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
WEIGHT_BYTES = 9_083_953_152


def declared(weights: str, activations: str | None, **more: object) -> dict[str, object]:
    """Return a quantization_config of compressed-tensors."""
    inputs = None if activations is None else {**FLOAT8, "strategy": activations, "dynamic": activations != "tensor"}
    block = {"block_structure": [128, 128]} if weights == "block" else {}
    group = {
        "targets": ["Linear"],
        "weights": {**FLOAT8, "strategy": weights, "dynamic": False, **block},
        "input_activations": None
        if inputs is None
        else {**inputs, "group_size": 128}
        if weights == "block"
        else inputs,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if activations else "naive-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **more,
    }


def tensors(*, fp8: bool, block: bool = False) -> Iterable[tuple[str, str, tuple[int, ...]]]:
    linears = {
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096),
        "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
    }
    yield "model.embed_tokens.weight", "BF16", (128256, 4096)
    yield "model.norm.weight", "BF16", (4096,)
    yield "lm_head.weight", "BF16", (128256, 4096)
    for layer in range(32):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", "BF16", (4096,)
        yield f"{prefix}.post_attention_layernorm.weight", "BF16", (4096,)
        for name, (rows, columns) in linears.items():
            yield f"{prefix}.{name}.weight", "F8_E4M3" if fp8 else "BF16", (rows, columns)
            if fp8:
                scale = (rows // 128, columns // 128) if block else (rows, 1)
                yield f"{prefix}.{name}.weight_scale", "BF16", scale


def write(folder: Path, quantization: dict[str, object] | None, *, fp8: bool = True, block: bool = False) -> Path:
    folder.mkdir()
    first_bytes, header = lay_out(tensors(fp8=fp8, block=block), {"format": "pt"})
    (folder / "model.safetensors").write_bytes(first_bytes)
    os.truncate(folder / "model.safetensors", header.file_bytes)
    config = LLAMA if quantization is None else LLAMA | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    folder = tmp_path_factory.mktemp("models") / "Llama-3-8B-FP8-dynamic"
    return look_at(str(write(folder, declared("channel", "token"))))


@pytest.fixture
def plain(tmp_path: Path) -> Candidate:
    return look_at(str(write(tmp_path / "Llama-3-8B", None, fp8=False)))


def gpu(gib: float, *, name: str = "NVIDIA Made Up", capability: tuple[int, int] = (8, 9)) -> Model:
    return name, capability, int(gib * GIB)


def found(*models: Model, free: float = 1.0) -> Gpus:
    """Find idle GPUs, or such of which only a part of the memory is free."""
    gpus = find_gpus(Nvml(*models), {})
    for one in gpus.visible:
        object.__setattr__(one, "free_bytes", int(free * (one.memory_bytes or 0)))
    return gpus


# --- What it is -------------------------------------------------------------------------------------------------


def test_a_whole_checkpoint_is_named_with_its_size_and_scheme(dynamic: Candidate) -> None:
    check = check_whole(dynamic)
    assert (check.status, check.fix) == ("passed", None)
    assert check.found == (
        "compressed-tensors, 9.08 GB: E4M3 weights per channel, activations per token at run time; "
        f"the values of its scales are for fp8 inspect {dynamic.survey.label}"
    )
    assert (dynamic.served.weight_bytes, dynamic.served.kind) == (WEIGHT_BYTES, "dynamic")


@pytest.mark.parametrize(
    ("weights", "activations", "kind"),
    [
        ("channel", "token", "dynamic"),
        ("tensor", "tensor", "static"),
        ("block", "group", "block"),
        ("channel", None, "weights"),
    ],
)
def test_the_kind_follows_from_what_the_config_declares(
    tmp_path: Path, weights: str, activations: str | None, kind: str
) -> None:
    folder = write(tmp_path / "model", declared(weights, activations), block=weights == "block")
    candidate = look_at(str(folder))
    assert candidate.served.kind == kind
    assert candidate.served.block == ((128, 128) if kind == "block" else None)


def test_a_fault_of_the_files_fails_with_the_command_that_shows_them_all(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", declared("channel", "token"))
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    check = check_whole(look_at(str(folder)))
    assert check.status == "failed"
    assert "model.safetensors" in check.found
    assert check.fix == f"fp8 inspect {folder}"


# --- In which mode ----------------------------------------------------------------------------------------------

IN_FP8 = "computes in FP8 (W8A8)"
IN_16_BITS = "keeps weights in FP8 and computes in 16 bits"


@pytest.mark.parametrize(
    ("models", "status", "words"),
    [
        ([H100], "passed", f"NVIDIA H100 80GB HBM3: {IN_FP8}"),
        ([L40S, L40S], "passed", f"NVIDIA L40S: {IN_FP8}"),
        ([A100], "passed", f"NVIDIA A100-SXM4-40GB: {IN_16_BITS}"),
        ([T4], "passed", f"Tesla T4: {IN_16_BITS} (has no BF16)"),
        ([H100, A100], "passed", f"NVIDIA H100 80GB HBM3: {IN_FP8}; NVIDIA A100-SXM4-40GB: {IN_16_BITS}"),
    ],
)
def test_the_mode_on_each_kind_of_gpu_is_said(dynamic: Candidate, models: list[Model], status: str, words: str) -> None:
    check = check_mode(dynamic, found(*models), (), amx=lambda: False)
    assert (check.status, check.found) == (status, words)


def test_a_gpu_that_cannot_load_it_fails_and_beside_a_better_one_it_is_a_warning(dynamic: Candidate) -> None:
    alone = check_mode(dynamic, found(V100), (), amx=lambda: False)
    beside = check_mode(dynamic, found(H100, V100), (), amx=lambda: False)
    assert (alone.status, beside.status) == ("failed", "warning")
    assert alone.found == (
        "Tesla V100-SXM2-16GB: vLLM 0.32 has no kernel for this kind of FP8 on compute capability 7.0"
    )


def test_without_a_gpu_it_is_vllm_s_cpu_build_that_is_judged(tmp_path: Path, dynamic: Candidate) -> None:
    block = look_at(str(write(tmp_path / "block", declared("block", "group"), block=True)))
    verdicts = {
        (candidate.served.kind, amx): check_mode(candidate, Gpus(), (), amx=lambda amx=amx: amx).status
        for candidate in (dynamic, block)
        for amx in (False, True)
    }
    assert verdicts == {
        ("dynamic", False): "warning",
        ("dynamic", True): "warning",
        ("block", False): "failed",
        ("block", True): "warning",
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fp8, dynamic", "FP8 with one scale for a whole weight"),
        ("compressed-tensors, static", "FP8 with one scale for a whole weight"),
        ("fbgemm", "FBGEMM FP8, for which it takes Marlin's kernels"),
    ],
)
def test_what_vllm_s_cpu_build_lacks_an_operator_for_fails_with_amx_and_without(
    tmp_path: Path, name: str, words: str
) -> None:
    candidate = look_at(str(make(tmp_path / "source", name)))
    for amx, has in ((False, "without"), (True, "with")):
        check = check_mode(candidate, Gpus(), (), amx=lambda amx=amx: amx)
        assert (check.status, check.found) == (
            "failed",
            f"no GPU; vLLM's CPU build {has} AMX does not run {words}",
        )


def test_on_an_amd_gpu_the_conversion_is_named(dynamic: Candidate) -> None:
    amd = (AmdGpu(name="AMD Instinct MI300X", gfx="gfx942", memory_bytes=192 * GIB, free_bytes=191 * GIB),)
    check = check_mode(dynamic, Gpus(), amd, amx=lambda: False)
    assert check.status == "passed"
    assert check.found.startswith(f"AMD Instinct MI300X: {IN_FP8} (its FP8 is E4M3FNUZ")
    assert check_fit(dynamic, Gpus(), amd).status == "passed"


def test_what_is_not_in_fp8_has_no_mode(plain: Candidate) -> None:
    assert check_mode(plain, Gpus(), (), amx=lambda: False) == Check(
        name="serving",
        status="passed",
        found="nothing is in FP8: unquantized BF16, served as it is",
        wanted="nothing",
    )


# --- Does it fit ------------------------------------------------------------------------------------------------


def tokens(gib: float, gpus: int = 1) -> int:
    """Work out the room for tokens by hand."""
    memory = int(gib * GIB)
    room = int(0.92 * memory) - -(-WEIGHT_BYTES // gpus) - max(int(1.5 * GIB), int(0.04 * memory))
    return room // (131_072 // gpus)


def test_where_there_is_room_for_the_whole_context_it_fits(dynamic: Candidate) -> None:
    assert tokens(12) > 8192
    check = check_fit(dynamic, found(gpu(12)), ())
    assert check == Check(
        name="fit",
        status="passed",
        found="fits on 1 × NVIDIA Made Up, context 8,192",
        wanted="8.46 GiB for weights, and room for the KV cache",
    )


def test_where_there_is_less_room_the_context_and_the_command_are_shorter(dynamic: Candidate) -> None:
    check = check_fit(dynamic, found(gpu(11.5)), ())
    context = tokens(11.5) // 16 * 16
    assert 1024 < context < 8192
    assert check.status == "warning"
    assert check.found == f"fits with a shorter context on 1 × NVIDIA Made Up, context {context:,} of 8,192"
    length = context // 1024 * 1024
    assert check.fix == f"vllm serve {dynamic.survey.label} --max-model-len {length}"


def test_what_is_too_large_for_one_fits_on_two_if_there_are_two(dynamic: Candidate) -> None:
    assert tokens(10) < 0
    assert tokens(10, 2) > 8192
    one, two = (check_fit(dynamic, found(*[gpu(10)] * number), ()) for number in (1, 2))
    assert (two.status, two.found) == ("passed", "fits on 2 × NVIDIA Made Up, context 8,192")
    assert (one.status, one.found) == ("failed", "fits on 2 × NVIDIA Made Up, and here are 1")
    assert one.fix == (f"serve it on 2 GPUs: vllm serve {dynamic.survey.label} --tensor-parallel-size 2")


def test_what_fits_on_no_number_of_gpus_fails_with_the_reason(dynamic: Candidate) -> None:
    check = check_fit(dynamic, found(gpu(1.6)), ())
    assert check.status == "failed"
    assert check.found.startswith("too large on 1 × NVIDIA Made Up: the weights leave -")


def test_one_kind_of_gpu_on_which_it_fits_is_enough(dynamic: Candidate) -> None:
    check = check_fit(dynamic, found(H100, gpu(1.6)), ())
    assert check.status == "passed"
    assert check.found.startswith("fits on 1 × NVIDIA H100 80GB HBM3, context 8,192; too large on 1 × ")


def test_memory_that_others_hold_keeps_vllm_from_starting_and_is_a_warning(dynamic: Candidate) -> None:
    check = check_fit(dynamic, found(L4, free=0.5), ())
    assert (check.status, check.fix) == (
        "warning",
        "end what else uses the GPU, or lower --gpu-memory-utilization",
    )
    assert check.found == ("would fit on 1 × NVIDIA L4, but 11.25 GiB of 22.49 GiB are free, and vLLM wants 92%")
    assert check_fit(dynamic, found(L4, free=0.93), ()).status == "passed"


def test_a_gpu_cut_into_slices_is_not_judged_and_one_slice_is(dynamic: Candidate) -> None:
    cut = check_fit(dynamic, find_gpus(Nvml(H100, slices=(40, 20)), {}), ())
    assert (cut.status, cut.found) == (
        "not checked",
        "NVIDIA H100 80GB HBM3: how much memory it has is not known",
    )
    one = find_gpus(Nvml(H100, slices=(40, 20)), {"CUDA_VISIBLE_DEVICES": "MIG-00c5e-0000"})
    assert check_fit(dynamic, one, ()).found == "fits on 1 × NVIDIA H100 80GB HBM3 MIG 3g.40gb, context 8,192"


@pytest.mark.parametrize(
    ("gpus", "words"), [(Gpus(), "no GPU to fit it on"), (Gpus(unknown="NVML: broken"), "NVML: broken")]
)
def test_without_a_gpu_there_is_no_verdict(dynamic: Candidate, gpus: Gpus, words: str) -> None:
    check = check_fit(dynamic, gpus, ())
    assert (check.status, check.found) == ("not checked", words)


# --- Room on the disk and in memory -----------------------------------------------------------------------------


def test_the_output_is_planned_to_the_byte_and_held_against_the_disk(
    plain: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is written: weights, scales, and the header.
    written = plain.output_bytes()
    assert WEIGHT_BYTES < written < WEIGHT_BYTES + 10**6
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"total": 10**12, "free": 9 * 10**9}))
    check = check_room(plain, tmp_path / "out")
    assert (check.status, check.wanted) == ("failed", "9.08 GB for the output")


def test_what_is_quantized_already_needs_no_room(dynamic: Candidate, tmp_path: Path) -> None:
    check = check_room(dynamic, tmp_path / "out")
    assert check.status == "not checked"
    assert check.found.endswith("is quantized already (compressed-tensors)")


def test_what_cannot_be_quantized_fails_and_what_takes_transformers_to_tell_is_not_checked(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", None, fp8=False)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 33}), "utf-8")
    missing = check_room(look_at(str(folder)), tmp_path / "out")
    assert missing.status == "failed"
    assert "model.layers.32" in missing.found
    (folder / "config.json").write_text('{"architectures": ["NewForCausalLM"], "model_type": "new"}', "utf-8")
    new = check_room(look_at(str(folder)), tmp_path / "out")
    assert (new.status, new.found) == (
        "not checked",
        "its architecture is not in the built-in table; fp8 quantize --dry-run asks transformers",
    )


def test_transformers_needs_room_for_the_weights_in_16_bits(dynamic: Candidate, plain: Candidate) -> None:
    scales = 32 * 2 * (3 * 4096 + 2 * 1024 + 2 * 14336)
    assert dynamic.wide_bytes - scales == plain.served.weight_bytes == plain.wide_bytes

    def status(available: int, *models: Model) -> str:
        memory = Memory(total_bytes=64 * GIB, available_bytes=available, group=None)
        return check_unpacked(dynamic, memory, found(*models)).status

    assert status(dynamic.wide_bytes) == "passed"
    assert status(dynamic.wide_bytes - 1) == "warning"
    assert status(GIB, H100) == "passed"
    assert status(GIB, gpu(14)) == "warning"


# --- All together -----------------------------------------------------------------------------------------------


def examine(tmp_path: Path, checkpoint: str, nvml: Nvml) -> DoctorReport:
    here = interpreter({**FULL, "vllm 0.33.0": ()}, vllm="vllm", build="+cu130", cuda="13.0")
    seen = Surroundings(checkpoint=checkpoint, root=lay_out_kernel(tmp_path / "root"), nvml=nvml, environ={})
    return run(DoctorRequest(checkpoint=checkpoint), stage(seen, here, here))


def test_a_checkpoint_that_runs_here_leaves_serving_ready(tmp_path: Path, dynamic: Candidate) -> None:
    report = examine(tmp_path, dynamic.survey.label, Nvml(H100))
    tasks = {each.task: (each.status, each.because) for each in report.tasks}
    assert tasks["serve"] == tasks["eval on vLLM"] == ("passed", ())
    assert tasks["quantize"] == ("not checked", ("disk space",))


SCREEN_AT_80 = """\
checkpoint
✓ passed       checkpoint  compressed-tensors, 9.08 GB: E4M3 weights per
                           channel, activations per token at run time; the
                           values of its scales are for fp8 inspect /m
✓ passed       serving     NVIDIA Made Up: computes in FP8 (W8A8)
! warning      fit         fits with a shorter context on 1 × NVIDIA Made Up,
                           context 5,072 of 8,192
               wanted: 8.46 GiB for weights, and room for the KV cache
               fix: vllm serve /m --max-model-len 4096

found issues in 1 category: checkpoint
"""


def test_the_verdict_on_a_checkpoint_as_a_screen(tmp_path: Path, dynamic: Candidate) -> None:
    seen = Surroundings(
        checkpoint=dynamic.survey.label, root=lay_out_kernel(tmp_path / "root"), nvml=Nvml(gpu(11.5)), environ={}
    )
    # As if nothing used it: the stand-in has 1 GiB in use.
    vars(seen)["gpus"] = found(gpu(11.5))
    request = DoctorRequest(checkpoint=seen.checkpoint, checks=("checkpoint", "serving", "fit"))
    report = settled(run(request, seen), {dynamic.survey.label: "/m"})
    assert printed(report, width=80) == SCREEN_AT_80


@pytest.mark.parametrize("name", ["./not-there", "no such/thing/at all", "https://example.org/model", "\x1b[31m"])
def test_a_checkpoint_that_is_not_there_fails_one_check_and_nothing_else_is_claimed_of_it(
    tmp_path: Path, name: str
) -> None:
    report = examine(tmp_path, name, Nvml(H100))
    statuses = {check.name: check.status for check in report.checks if check.category == "checkpoint"}
    assert statuses == {
        "checkpoint": "failed",
        "serving": "not checked",
        "fit": "not checked",
        "dialect": "not checked",
        "unpacked": "not checked",
    }
    assert report.exit_code == 1


def test_a_hub_id_out_of_reach_is_not_checked(tmp_path: Path) -> None:
    report = examine(tmp_path, "some-org/some-model", Nvml(H100))
    check = next(check for check in report.checks if check.name == "checkpoint")
    assert check.status == "not checked"
    assert "HF_HUB_OFFLINE is set" in check.found
