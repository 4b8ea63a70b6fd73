"""A checkpoint however damaged: every fault is found and named, and what can be read is there.

The oracles are the strict opener, which another set of tests holds against transformers and the safetensors
library, that library itself, and for what follows from a fault transformers and vLLM.
"""

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fp8cli.core.findings import Finding, any_failed
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.errors import BadInput, Fp8Error
from fp8cli.formats.checkpoint import LocalFile, LocalFolder, open_checkpoint
from tests.malformed import (
    BROKEN_FOLDERS,
    CHECKS,
    FLAWED_FOLDERS,
    INDEX,
    MALFORMED,
    SHARDS,
    SOUND_FILES,
    Flawed,
    Malformed,
    Sound,
    entry,
    pack,
    shard,
    sharded,
    single,
    write_folder,
)
from tests.models import llama_config, save_model
from tests.test_checkpoint import build_cache, no_privileges

STORIES = Path(__file__).parent.parent / "fp8cli" / "bundled" / "stories-llama"


def surveyed(path: Path) -> Survey:
    return survey(LocalFolder(path) if path.is_dir() else LocalFile(path))


def found(survey_of: Survey, check: str) -> list[Finding]:
    return [finding for finding in survey_of.findings if finding.check == check]


def only(survey_of: Survey, check: str) -> Finding:
    (finding,) = found(survey_of, check)
    return finding


def faults(survey_of: Survey) -> list[Finding]:
    return [finding for finding in survey_of.findings if finding.status in {"failed", "warning"}]


def assert_presentable(survey_of: Survey) -> None:
    """Whole sentences, safe to print, and a reason wherever something was not checked."""
    for finding in survey_of.findings:
        for text in (finding.found, finding.consequence, finding.remedy):
            assert text is None or (text.isprintable() and text and not text.endswith("."))
        assert len(finding.found) < 12_000
        assert finding.count >= 1
        if finding.status == "failed":
            assert finding.consequence


# Named cases


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_every_broken_checkpoint_fails_the_check_that_is_about_it(case: Malformed, tmp_path: Path) -> None:
    case.build(tmp_path / "checkpoint")
    result = surveyed(tmp_path / "checkpoint")
    assert_presentable(result)
    check = CHECKS.get(case.name, "file.header")
    message = case.message if case.name != "empty_folder" else "holds no weights"
    matching = [finding for finding in found(result, check) if re.search(message, finding.found)]
    assert matching, result.findings
    assert matching[0].status == ("warning" if check == "index.total_size" else "failed")
    # The strict opener stops with the same sentence.
    if case.name != "empty_folder":
        with pytest.raises(BadInput) as refusal:
            open_checkpoint(LocalFolder(tmp_path / "checkpoint"))
        assert refusal.value.message == matching[0].found
        assert refusal.value.hint == matching[0].remedy


def test_the_table_of_checks_names_only_cases_that_there_are() -> None:
    assert CHECKS.keys() <= {case.name for case in MALFORMED}
    assert {case.name for case in BROKEN_FOLDERS} <= CHECKS.keys()


@pytest.mark.parametrize("case", FLAWED_FOLDERS, ids=lambda case: case.name)
def test_every_flaw_of_a_checkpoint_that_opens_is_said(case: Flawed, tmp_path: Path) -> None:
    case.build(tmp_path / "checkpoint")
    result = surveyed(tmp_path / "checkpoint")
    assert_presentable(result)
    finding = only(result, case.check)
    assert finding.status == case.status
    assert re.search(case.message, finding.found)
    assert "a" in result.tensors
    # One flaw, one finding: nothing else is blamed.
    flaws = {case.check} if case.status in {"failed", "warning"} else set()
    assert {each.check for each in faults(result)} == flaws | {*case.also}


@pytest.mark.parametrize("case", SOUND_FILES, ids=lambda case: case.name)
def test_a_sound_file_is_read_as_the_library_reads_it_and_nothing_fails(case: Sound, tmp_path: Path) -> None:
    case.build(tmp_path)
    result = surveyed(tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        theirs = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    assert {name: (tensor.info.dtype, tensor.info.shape) for name, tensor in result.tensors.items()} == theirs
    failed = [finding.check for finding in result.findings if finding.status == "failed"]
    assert failed == ([] if theirs else ["weights.none"])


def test_the_bundled_checkpoint_passes_every_check_and_each_is_named_once() -> None:
    result = surveyed(STORIES)
    tensors = load_file(STORIES / "model.safetensors")
    files = sorted(file.name for file in STORIES.iterdir())
    assert [(finding.check, finding.status, finding.found) for finding in result.findings] == [
        ("config", "passed", "`config.json` is a JSON object"),
        ("config.side", "passed", "`generation_config.json`: valid JSON"),
        ("file.header", "passed", "1 header read, well-formed"),
        ("file.size", "passed", "1 weight file: no byte missing, unused or used twice"),
        ("index", "passed", f"{len(tensors)} tensors in `model.safetensors`, which needs no index"),
        (
            "file.side",
            "passed",
            f"{len(files) - 3} side files, each can be read, none is empty, broken JSON or a pointer",
        ),
        ("file.mode", "passed", f"{len(files)} files, each open to more users than its owner"),
    ]
    assert result.label == str(STORIES)
    assert sorted(result.files) == files
    assert result.config == json.loads((STORIES / "config.json").read_text())
    assert {name: tensor.info.bytes for name, tensor in result.tensors.items()} == {
        name: tensor.nbytes for name, tensor in tensors.items()
    }
    name = "model.norm.weight"
    stored = result.tensors[name]
    (data,) = result.reader.read_many([(stored.file, stored.info.begin, stored.info.end)])
    assert data == tensors[name].view(torch.uint8).numpy().tobytes()


def test_a_sharded_checkpoint_passes_with_its_numbers(tmp_path: Path) -> None:
    save_model(tmp_path, llama_config(), max_shard_size="200KB")
    for file in tmp_path.iterdir():
        file.chmod(0o644)
    result = surveyed(tmp_path)
    state = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    shards = len([*tmp_path.glob("*.safetensors")])
    size = sum(tensor.nbytes for tensor in state.values())
    assert faults(result) == []
    assert (
        only(result, "index").found == f"{len(state)} tensors in {shards} shards, each once and where the index puts it"
    )
    assert (
        only(result, "index.total_size").found
        == f"the shards hold the {size:,} bytes of tensors that the index promises"
    )
    assert set(result.tensors) == set(state)
    assert result.side_configs.keys() == {"generation_config.json"}


# Damage does not spread


def test_a_damaged_shard_does_not_hide_the_others(tmp_path: Path) -> None:
    sharded(second=b"\0")(tmp_path)
    result = surveyed(tmp_path)
    assert [*result.tensors] == ["a"]
    assert [*result.headers] == [SHARDS[0]]
    assert [finding.check for finding in faults(result)] == ["file.cut_short"]
    assert {finding.check: finding.found for finding in result.findings if finding.status == "not checked"} == {
        "file.size": "the headers of 1 of 2 weight files cannot be read",
        "index": "not all shards could be read; the others hold 1 tensor",
        "index.total_size": "not all shards could be read",
    }


def test_the_tensors_of_a_cut_file_are_known_and_so_is_which_of_them_are_whole(tmp_path: Path) -> None:
    single(shard("a", "b", "c")[:-6])(tmp_path)
    result = surveyed(tmp_path)
    assert only(result, "file.cut_short").found.endswith("file has 198")
    assert {name: result.holds(tensor) for name, tensor in result.tensors.items()} == {
        "a": True,
        "b": False,
        "c": False,
    }
    ranges = [(tensor.file, tensor.info.begin, tensor.info.end) for tensor in result.tensors.values()]
    assert [*result.reader.read_many(ranges)] == [bytes(4), bytes(2), b""]


def test_a_name_given_twice_counts_once_as_the_library_counts_it(tmp_path: Path) -> None:
    text = f'{{"a":{json.dumps(entry("F32", [1], [0, 4]))},"a":{json.dumps(entry("I32", [1], [0, 4]))}}}'
    single(pack(text, bytes(4)))(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert surveyed(tmp_path).tensors["a"].info.dtype == file.get_slice("a").get_dtype() == "I32"


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"a": SHARDS[1], "b": SHARDS[1], "ghost": SHARDS[1], "far": "../far.safetensors", "x": "gone"},
    }
    sharded(index, first=shard("a", "b", "c"), **{"model.safetensors": shard("z"), "tokenizer.json": ""})(tmp_path)
    (tmp_path / "config.json").write_bytes(b"[]")
    assert sorted({finding.check for finding in faults(surveyed(tmp_path))}) == [
        "config.json",
        "file.empty",
        "index.extra_shard",
        "index.ghost",
        "index.missing_shard",
        "index.path",
        "index.single_beside",
    ]


def test_tensors_that_share_a_fault_are_one_finding(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(12)]
    index = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": SHARDS[0], "b": SHARDS[1], **dict.fromkeys(names, SHARDS[1])},
    }
    sharded(index)(tmp_path)
    finding = only(surveyed(tmp_path), "index.ghost")
    assert (finding.subject, finding.count) == ("model.layers.{0..11}.mlp.up_proj.weight", 12)
    assert finding.found == (
        f"`model.layers.{{0..11}}.mlp.up_proj.weight` is missing: `{INDEX}` puts it in `{SHARDS[1]}`, which lacks it"
    )


def test_many_missing_shards_are_one_finding(tmp_path: Path) -> None:
    names = [f"model-{number:05d}-of-00100.safetensors" for number in range(1, 101)]
    index = {"metadata": {}, "weight_map": {f"t{number}": name for number, name in enumerate(names)}}
    write_folder(tmp_path, **{INDEX: json.dumps(index), names[0]: shard("t0")})
    finding = only(surveyed(tmp_path), "index.missing_shard")
    assert finding.count == 99
    assert finding.found == (
        f"`{names[1]}` is missing: `{INDEX}` names it, the folder lacks it, and so it is with 98 more"
    )


def test_names_from_strangers_are_harmless_in_what_is_said(tmp_path: Path) -> None:
    name = "\x1b[31m[bold]\u202e" + "x" * 10_000
    sharded({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], name: SHARDS[1]}})(tmp_path)
    result = surveyed(tmp_path)
    assert_presentable(result)
    assert only(result, "index.ghost").subject == name


# Files that cannot be had


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A sharded checkpoint that another user may enter; pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        sharded(**{"tokenizer.json": "{}"})(Path(name) / "it's")
        yield Path(name) / "it's"


def test_what_may_not_be_read_fails_and_the_rest_is_read(reachable: Path) -> None:
    (reachable / SHARDS[0]).chmod(0)
    (reachable / "tokenizer.json").chmod(0)
    with no_privileges():
        result = surveyed(reachable)
    assert [*result.tensors] == ["b"]
    assert [(finding.found, finding.remedy) for finding in found(result, "file.readable")] == [
        (
            f"`{SHARDS[0]}` cannot be read: permission denied",
            f"""chmod u+r '{reachable.parent}/it'"'"'s/{SHARDS[0]}'""",
        ),
        (
            "`tokenizer.json` cannot be read: permission denied",
            f"""chmod u+r '{reachable.parent}/it'"'"'s/tokenizer.json'""",
        ),
    ]
    assert any_failed(result.findings)


def test_a_folder_below_that_may_not_be_listed_is_not_checked(reachable: Path) -> None:
    (reachable / "assets").mkdir()
    (reachable / "assets").chmod(0)
    with no_privileges():
        result = surveyed(reachable)
    (reachable / "assets").chmod(0o755)
    assert [*result.tensors] == ["a", "b"]
    assert only(result, "folder.readable").status == "not checked"
    assert only(result, "folder.readable").subject == "assets"


def test_what_is_not_there_or_may_not_be_listed_at_all_raises(reachable: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        survey(LocalFolder(reachable / "gone"))
    reachable.chmod(0)
    with no_privileges(), pytest.raises(BadInput, match="cannot be read: permission denied"):
        survey(LocalFolder(reachable))
    reachable.chmod(0o755)


def test_the_links_of_a_hub_cache_are_sound_and_a_broken_off_download_in_it_is_said(tmp_path: Path) -> None:
    snapshot = build_cache(tmp_path, sharded())
    assert faults(surveyed(snapshot)) == []
    (snapshot.parent.parent / "blobs" / "ab.incomplete").write_bytes(b"half")
    assert [finding.check for finding in faults(surveyed(snapshot))] == ["folder.unfinished_download"]


def test_an_unfinished_output_of_this_tool_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / ".out.fp8-partial" / "checkpoint"
    single(shard("a"))(folder)
    assert only(surveyed(folder), "folder.unfinished").status == "failed"


def test_a_file_by_itself_is_looked_at_without_what_lies_around_it(tmp_path: Path) -> None:
    sharded("not JSON")(tmp_path)
    result = surveyed(tmp_path / SHARDS[0])
    assert [*result.tensors] == ["a"]
    assert {finding.check: finding.status for finding in result.findings} == {
        "config": "not checked",
        "file.header": "passed",
        "file.size": "passed",
        "index": "not checked",
        "file.mode": "passed",
    }


def test_nothing_heavy_is_loaded_and_no_hub_library_for_a_folder() -> None:
    program = (
        "import sys; from fp8cli.core.inspection.survey import survey;"
        "from fp8cli.formats.sources import resolve_anything;"
        "survey(resolve_anything(sys.argv[1]));"
        "sys.exit(str({'torch', 'numpy', 'transformers', 'huggingface_hub', 'pandas'} & sys.modules.keys() or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(STORIES)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") or done.stderr == "\n"


# What follows from a fault, asked of those who load


def model_in_shards(folder: Path, *names: str) -> Mapping[str, torch.Tensor]:
    """A model whose `model.norm.weight` lies in several files, filled with 1, 2, … in the order of `names`."""
    model = AutoModelForCausalLM.from_config(llama_config()).to(torch.bfloat16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.config.save_pretrained(folder)
    norm = state.pop("model.norm.weight")
    for number, name in enumerate(names):
        held = {
            "model.norm.weight": torch.full_like(norm, number + 1.0),
            **(state if number == 0 else {f"n{number}": norm}),
        }
        save_file(held, folder / name, metadata={"format": "pt"})
    weight_map = {**dict.fromkeys(state, names[0]), "model.norm.weight": names[0]}
    weight_map |= {f"n{number}": name for number, name in enumerate(names) if number > 0}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return state


def test_transformers_keeps_the_copy_that_the_finding_says(tmp_path: Path) -> None:
    model_in_shards(tmp_path, "model-10.safetensors", "model-9.safetensors")
    consequence = only(surveyed(tmp_path), "index.duplicate").consequence
    assert consequence == "vLLM keeps the copy in `model-10.safetensors`, transformers that in `model-9.safetensors`"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()["model.norm.weight"]
    assert loaded.unique().tolist() == [2.0]


def test_transformers_stops_at_an_index_without_metadata(tmp_path: Path) -> None:
    save_model(tmp_path, llama_config(), max_shard_size="200KB")
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    assert only(surveyed(tmp_path), "index.metadata").consequence == (
        "transformers stops with KeyError: 'metadata'; vLLM does not look at it"
    )
    with pytest.raises(KeyError, match="metadata"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_transformers_sees_what_the_findings_say_it_sees(tmp_path: Path) -> None:
    save_model(tmp_path / "outside", llama_config())
    state = load_file(tmp_path / "outside" / "model.safetensors")
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "outside" / "config.json").rename(folder / "config.json")

    # An index may lead anywhere.
    weight_map = dict.fromkeys(state, "../outside/model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "transformers opens whatever lies there" in str(only(surveyed(folder), "index.path").consequence)
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert torch.equal(loaded["model.norm.weight"], state["model.norm.weight"])

    # A single file goes before an index.
    changed = {**state, "model.norm.weight": torch.full_like(state["model.norm.weight"], 7.0)}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(state, folder / SHARDS[0], metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, SHARDS[0])}))
    assert "transformers reads the single file" in str(only(surveyed(folder), "index.single_beside").consequence)
    assert AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.norm.weight"].unique().tolist() == [7.0]

    # What a shard lacks is made up.
    (folder / "model.safetensors").unlink()
    lost = {name: tensor for name, tensor in state.items() if name != "model.layers.0.mlp.up_proj.weight"}
    save_file(lost, folder / SHARDS[0], metadata={"format": "pt"})
    assert "transformers fills it with random numbers" in str(only(surveyed(folder), "index.ghost").consequence)
    made_up = AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(made_up, state["model.layers.0.mlp.up_proj.weight"])

    # Shards without an index are no weights.
    save_file(lost, folder / SHARDS[1], metadata={"format": "pt"})
    (folder / INDEX).unlink()
    assert (
        only(surveyed(folder), "index.absent").consequence == "vLLM loads all of them, transformers refuses the folder"
    )
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.slow
def test_vllm_keeps_the_copies_and_the_files_that_the_findings_say(tmp_path: Path) -> None:
    from vllm.model_executor.model_loader.weight_utils import (
        filter_duplicate_safetensors_files,
        safetensors_weights_iterator,
    )

    model_in_shards(tmp_path, "model-10.safetensors", "model-9.safetensors")
    (tmp_path / "model.safetensors").write_bytes(shard("other"))
    result = surveyed(tmp_path)
    assert "vLLM keeps the copy in `model-10.safetensors`" in str(only(result, "index.duplicate").consequence)
    assert "vLLM the shards" in str(only(result, "index.single_beside").consequence)
    files = filter_duplicate_safetensors_files(
        [str(file) for file in tmp_path.glob("*.safetensors")], str(tmp_path), INDEX
    )
    assert sorted(map(os.path.basename, files)) == ["model-10.safetensors", "model-9.safetensors"]
    kept = dict(safetensors_weights_iterator(files, use_tqdm_on_load=False))
    assert kept["model.norm.weight"].unique().tolist() == [1.0]
    assert set(kept) == set(result.tensors)
    assert result.tensors["model.norm.weight"].file == "model-10.safetensors"

    # Without an index all files count; with one that names a file that is not there, none.
    index = (tmp_path / INDEX).read_text()
    (tmp_path / INDEX).unlink()
    assert "other" in surveyed(tmp_path).tensors
    everything = [str(file) for file in tmp_path.glob("*.safetensors")]
    assert sorted(filter_duplicate_safetensors_files(everything, str(tmp_path), INDEX)) == sorted(everything)
    (tmp_path / INDEX).write_text(index)
    (tmp_path / "model-9.safetensors").unlink()
    assert "stop while loading" in str(only(surveyed(tmp_path), "index.missing_shard").consequence)
    with pytest.raises(FileNotFoundError, match="referenced in index but missing"):
        filter_duplicate_safetensors_files(everything[:1], str(tmp_path), INDEX)


def test_folders_may_lie_deeper_than_python_recurses(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path)
    deepest = tmp_path
    for _ in range(1100):
        deepest = deepest / "d"
        deepest.mkdir()
    assert [*surveyed(tmp_path).files] == ["config.json", "model.safetensors"]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


# Fuzzing: whatever lies in a file, a survey comes back, and never calls sound what the strict opener refuses.

fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("config.json", INDEX, *SHARDS, "tokenizer.json", "generation_config.json", "hf_quant_config.json", "x.bin")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(SHARDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["weight_map", "metadata", "total_size", "a", "b"]) | st.text(max_size=2), inner
        )
    ),
    max_leaves=8,
)


def refusal_of(folder: Path) -> str | None:
    """What the strict opener says of it."""
    try:
        open_checkpoint(LocalFolder(folder))
    except BadInput as refusal:
        return refusal.message
    return None


def assert_survives(files: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        sharded(**{"tokenizer.json": "{}"})(folder)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        result = surveyed(folder)
        assert_presentable(result)
        refusal = refusal_of(folder)
        if refusal is not None:
            assert any(finding.found.startswith(refusal) for finding in faults(result)), refusal
        else:
            checks = {finding.check for finding in result.findings if finding.status == "failed"}
            assert checks <= {"index.metadata", "file.impostor", "file.json", "file.empty", "file.pickle"}


@fuzzed
@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=80), min_size=1, max_size=3))
def test_any_bytes_in_any_file_are_survived(files: dict[str, bytes]) -> None:
    assert_survives(files)


@fuzzed
@given(st.sampled_from([name for name in NAMES if name.endswith(".json")]), json_values)
def test_any_json_in_any_file_is_survived(name: str, value: object) -> None:
    assert_survives({name: json.dumps(value).encode()})


@fuzzed
@given(st.sampled_from(["a", "b"]), st.data())
def test_a_shard_with_some_bytes_changed_is_survived(tensor: str, data: st.DataObject) -> None:
    content = bytearray(shard(tensor))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        byte = data.draw(st.integers(0, 255) | st.sampled_from(list(b'"{}[]:,0129- \\')))
        match data.draw(st.sampled_from(["change", "insert", "cut"])):
            case "change":
                content[place] = byte
            case "insert":
                content.insert(place, byte)
            case _:
                del content[place + 1 :]
    assert_survives({SHARDS["ab".index(tensor)]: bytes(content)})


@fuzzed
@given(st.text(max_size=40))
def test_any_name_of_a_source_is_survived(name: str) -> None:
    from fp8cli.formats.sources import resolve_anything

    with contextlib.suppress(Fp8Error):
        resolve_anything(name)


def test_what_safetensors_saves_may_be_closed_to_others_and_that_is_said(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    closed = not (tmp_path / "model.safetensors").stat().st_mode & 0o044
    finding = only(surveyed(tmp_path), "file.mode")
    assert finding.status == ("warning" if closed else "passed")
    if closed:
        assert finding.remedy == f"chmod go+r {tmp_path}/model.safetensors"


def test_modes_are_those_of_the_file_system(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path)
    (tmp_path / "model.safetensors").chmod(0o640)
    assert only(surveyed(tmp_path), "file.mode").status == "passed"
    (tmp_path / "model.safetensors").chmod(0o700)
    assert only(surveyed(tmp_path), "file.mode").found.endswith("its mode is 0700")
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o700
