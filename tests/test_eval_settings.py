"""What an evaluation decides before anything is loaded: backend, safe settings, keys, and what it refuses."""

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest

from fp8cli.cli import evaluate as words
from fp8cli.core.evaluating.answers import find_answers
from fp8cli.core.evaluating.backends import Workplace, _automatic, choose_workplace, examine
from fp8cli.core.evaluating.environment import deciding
from fp8cli.core.evaluating.keys import Keys, make_keys, origins
from fp8cli.core.evaluating.model_args import parse_model_arg, typed
from fp8cli.core.evaluating.request import EvaluationRequest, check_request
from fp8cli.core.evaluating.servers import ask_server
from fp8cli.core.evaluating.settings import Chosen, choose_settings
from fp8cli.core.evaluating.subject import Subject, open_subject
from fp8cli.core.evaluating.task_sources import STORIES as TASK
from fp8cli.core.evaluating.task_sources import find_sources, hash_contents
from fp8cli.core.machine.interpreters import Distribution, Interpreter
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats.run_record import TaskFacts
from tests.dialects import make
from tests.hand_made_records import a_record
from tests.planting import STORIES, change, change_config, quantize_stories, set_scale
from tests.stand_in_nvml import A100, H100, V100, Nvml

SCALE = "model.layers.1.mlp.down_proj.weight_scale"
YAML = "task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"


def request(**wishes: Any) -> EvaluationRequest:
    return EvaluationRequest(**{"tasks": (TASK,), "checkpoint": str(STORIES), **wishes})


def subject_of(wishes: EvaluationRequest) -> Subject:
    return open_subject(wishes.checkpoint, None, served=False, full_hash=wishes.full_hash, download_bars=False)


def chosen(**wishes: Any) -> Chosen:
    asked = request(**wishes)
    subject = subject_of(asked)
    return choose_settings(asked, subject, choose_workplace(asked, subject), None)


def keys(**wishes: Any) -> Keys:
    asked = request(**wishes)
    subject = subject_of(asked)
    settings = choose_settings(asked, subject, choose_workplace(asked, subject), None)
    sources = find_sources(asked.task_names, asked.include_paths)
    return make_keys(subject, settings, (), hash_contents(sources))


def key(task: str = TASK, **wishes: Any) -> str:
    return keys(**wishes).of(task, task)


def test_settings_of_transformers_are_explicit_and_have_reasons() -> None:
    made = chosen()
    assert made.settings.model_args == {
        "dtype": "bfloat16",
        "max_length": 512,
        "add_bos_token": True,
        "softmax_dtype": "float32",
    }
    assert made.place == {"pretrained": str(STORIES)}
    assert (made.settings.batch_size, made.settings.bos, made.device) == (16, True, "cpu")
    assert made.settings.seeds == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
    assert set(made.settings.safe) == {"add_bos_token", "softmax_dtype", "dtype", "max_length", "batch_size", "seeds"}
    assert made.overridden == ()


def test_settings_of_vllm_keep_prompts_apart_and_memory_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    settings = chosen(backend="vllm").settings
    assert settings.model_args == {
        "dtype": "bfloat16",
        "max_model_len": 512,
        "gpu_memory_utilization": 0.8,
        "tensor_parallel_size": 1,
        "add_bos_token": True,
        "enable_prefix_caching": False,
        "seed": 1234,
        "enforce_eager": True,
    }
    assert settings.batch_size == 256
    assert settings.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert int(settings.environment["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    assert settings.environment["VLLM_ATTENTION_BACKEND"] == "FLASH_ATTN"
    assert "secret" not in settings.environment.values()
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in chosen(backend="vllm", tensor_parallel=2).settings.environment


def test_vllm_is_told_to_load_fbgemm_which_it_refuses_as_deprecated_otherwise(tmp_path: Path) -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent / "model_executor" / "layers" / "quantization" / "__init__.py"
    deprecated = package.read_text("utf-8").partition("DEPRECATED_QUANTIZATION_METHODS = [")[2].partition("]")[0]
    source = make(tmp_path / "source", "fbgemm")
    method = json.loads((source / "config.json").read_text())["quantization_config"]["quant_method"]
    assert f'"{method}"' in deprecated
    settings = chosen(checkpoint=str(source), backend="vllm").settings
    assert settings.model_args["allow_deprecated_quantization"] is True
    assert "deprecated" in settings.safe["allow_deprecated_quantization"]
    other = make(tmp_path / "other", "modelopt, channels")
    assert "allow_deprecated_quantization" not in chosen(checkpoint=str(other), backend="vllm").settings.model_args


def test_what_the_user_has_set_for_vllm_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    settings = chosen(backend="vllm").settings
    assert settings.environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert "VLLM_CPU_KVCACHE_SPACE" not in settings.safe


def test_only_variables_that_decide_are_kept_and_no_secret() -> None:
    environ = {"VLLM_BATCH_INVARIANT": "1", "VLLM_CACHE_ROOT": "/x", "HF_TOKEN": "s", "VLLM_API_KEY": "s", "HOME": "/"}
    assert deciding(environ) == {"VLLM_BATCH_INVARIANT": "1"}


def test_vllm_is_told_how_to_spread_over_several_machines() -> None:
    """Ray is vLLM's own way of doing that: arguments of its engine, which lm-eval's class passes on as they are."""
    told = chosen(backend="vllm", tensor_parallel=8, pipeline_parallel=2, cluster="ray=a:1").settings.model_args
    wanted = {"distributed_executor_backend": "ray", "pipeline_parallel_size": 2, "tensor_parallel_size": 8}
    assert wanted.items() <= told.items()
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = ast.parse(Path(spec.origin).with_name("engine").joinpath("arg_utils.py").read_text("utf-8"))
    engine = next(each for each in source.body if isinstance(each, ast.ClassDef) and each.name == "EngineArgs")
    fields = {each.target.id for each in engine.body if isinstance(each, ast.AnnAssign) and hasattr(each.target, "id")}
    assert wanted.keys() <= fields


def test_a_safe_setting_that_is_replaced_is_said_and_kept() -> None:
    made = chosen(model_args=("softmax_dtype=bfloat16", "add_bos_token=false", "trust_remote_code=true"))
    assert made.settings.model_args["softmax_dtype"] == "bfloat16"
    assert made.settings.model_args["trust_remote_code"] is True
    assert made.settings.bos is False
    assert "softmax_dtype" not in made.settings.safe
    assert [text.split(":")[0] for text in made.overridden] == [
        "add_bos_token is false as asked for, and not the safe true",
        "softmax_dtype is bfloat16 as asked for, and not the safe float32",
    ]


def test_what_the_user_says_himself_has_no_reason() -> None:
    made = chosen(dtype="float32", batch_size=4, max_length=100)
    assert (made.settings.dtype, made.settings.batch_size, made.settings.max_length) == ("float32", 4, 100)
    assert set(made.settings.safe) == {"add_bos_token", "softmax_dtype", "seeds"}


@pytest.mark.parametrize(("longest", "length"), [(512, 512), (4096, 4096), (131_072, 4096), (None, 2048)])
def test_the_context_is_the_models_but_no_longer_than_tasks_need(
    tmp_path: Path, longest: int | None, length: int
) -> None:
    copy = shutil.copytree(STORIES, tmp_path / "copy")

    def plant(config: dict[str, object]) -> None:
        # An unknown architecture, so that no default of a table stands in for what is left out.
        config |= {"max_position_embeddings": longest, "model_type": "abacus", "architectures": ["AbacusForCausalLM"]}

    change_config(copy, plant)
    assert chosen(checkpoint=str(copy)).settings.max_length == length


def test_values_of_model_args_are_typed_as_lm_eval_does() -> None:
    from lm_eval.utils import handle_arg_string

    for text in (
        "true",
        "False",
        "none",
        "12",
        "-3",
        "+3",
        "1e3",
        "0.5",
        "'12'",
        '"a"',
        "a b",
        " x ",
        "1_000",
        "",
        "v1",
    ):
        ours, theirs = typed(text), handle_arg_string(text)
        assert (type(ours), ours) == (type(theirs), theirs), text


@pytest.mark.parametrize("text", ["x", "=1", "a b=1", "1a=2", "pretrained=x", "batch_size=2", "x=nan", "x=inf"])
def test_what_is_no_model_arg_or_would_contradict_an_option_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_model_arg(text)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"tasks": ()}, "no task is named"),
        ({"tasks": (" , ",)}, "no task is named"),
        ({"tasks": ("nowhere.yaml",)}, "the task file `nowhere.yaml` does not exist"),
        ({"include_paths": (Path("nowhere"),)}, "the folder of tasks `nowhere` does not exist"),
        ({"limit": 0.0}, "--limit is 0, and must be above 0"),
        ({"limit": -1.0}, "--limit is -1, and must be above 0"),
        ({"limit": float("nan")}, "--limit is nan, and must be above 0"),
        ({"limit": 1.5}, "--limit is 1.5: a number of items, or a share below 1"),
        ({"limit": 3.0, "sample": 3}, "--limit and --sample exclude each other"),
        ({"sample": 0}, "--sample is 0, and must be 1 or more"),
        ({"num_fewshot": -1}, "--num-fewshot is -1, and must be 0 or more"),
        ({"batch_size": 0}, "--batch-size is 0, and must be 1 or more"),
        ({"data_parallel": 0}, "--data-parallel is 0, and must be 1 or more"),
        ({"gpu_memory": 1.0}, "--gpu-memory is 1, and must be between 0 and 1"),
        ({"dtype": "int8"}, "`int8` is no dtype to evaluate in"),
        ({"backend": "abacus"}, "`abacus` is no backend"),
        ({"backend": "hf", "server": "http://x"}, "--server names a server, and --backend hf asks none"),
        ({"backend": "server"}, "--backend server needs its address"),
        ({"server": "localhost:8000"}, "`localhost:8000` is no address of a server"),
        ({"server": "http://me:secret@x"}, "--server holds a user or a password, which would be kept in the record"),
        ({"server": "http://x", "data_parallel": 2}, "a server decides by itself how it is spread"),
        ({"backend": "hf", "tensor_parallel": 2}, "--tensor-parallel is for vLLM"),
        ({"backend": "hf", "pipeline_parallel": 2}, "--pipeline-parallel is for vLLM"),
        ({"pipeline_parallel": 0}, "--pipeline-parallel is 0, and must be 1 or more"),
        ({"server": "http://x", "pipeline_parallel": 2}, "a server decides by itself how it is spread"),
        ({"server": "http://x", "cluster": "ray"}, "a server decides by itself how it is spread"),
        ({"cluster": "kubernetes"}, "--cluster `kubernetes` is no cluster"),
        ({"cluster": "ray", "backend": "hf"}, "--cluster is for vLLM: transformers runs on one machine"),
        (
            {"cluster": "ray", "data_parallel": 2},
            "--data-parallel 2 deals out the GPUs of one machine, and a cluster has many",
        ),
        (
            {"cluster": "ray", "model_args": ("distributed_executor_backend=mp",)},
            "--model-arg distributed_executor_backend would contradict --cluster",
        ),
        (
            {"model_args": ("pipeline_parallel_size=2",)},
            "--model-arg pipeline_parallel_size would contradict an option",
        ),
        ({"fewshot_as_multiturn": True}, "--fewshot-as-multiturn needs a chat template"),
        ({"text": Path("nowhere.txt")}, "the file of texts `nowhere.txt` does not exist"),
        ({"text": Path("x"), "fidelity": False}, "--text and --no-fidelity exclude each other"),
        ({"label": "../../etc"}, "the label `../../etc` begins with `.`"),
        ({"stall_timeout": 0.0}, "--stall-timeout is 0, and must be 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_request(request(**wishes))
    assert refusal.value.message == message
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"max_length": 513}, "--max-length is 513, and config.json allows 512"),
        ({"backend": "vllm", "device": "cpu"}, "--device is for --backend hf, and this is vllm"),
    ],
)
def test_what_this_checkpoint_cannot_have_is_refused(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        chosen(**wishes)
    assert refusal.value.message == message


def test_defaults_of_the_command_line_are_those_of_a_request() -> None:
    import inspect

    spelled = {name: option.default for name, option in inspect.signature(words.evaluate).parameters.items()}
    asked = EvaluationRequest(tasks=())
    for name in ("seed", "backend", "tensor_parallel", "data_parallel", "dtype", "gpu_memory", "runs"):
        assert spelled[name] == getattr(asked, name), name
    for name in ("fidelity_positions", "stall_timeout", "limit", "sample", "batch_size", "fewshot_as_multiturn"):
        assert spelled[name] == getattr(asked, name), name


def on(*gpus: Any, vllm: Interpreter | None = None) -> Workplace:
    place = Workplace(backend="vllm", why="", nvml=Nvml(*gpus), environ={})
    vars(place)["vllm"] = vllm
    return place


def interpreter(*names: str) -> Interpreter:
    found = {name: Distribution(name=name, version="1") for name in names}
    return Interpreter(python=Path("/opt/python"), named_by="--python", distributions=found, vllm="vllm")


@pytest.mark.parametrize(
    ("place", "backend", "why"),
    [
        (on(), "hf", "there is no GPU"),
        (on(V100, vllm=interpreter("lm-eval")), "hf", "vLLM takes no FP8 on Tesla V100-SXM2-16GB"),
        (on(H100), "hf", "no interpreter with vLLM was found"),
        (on(H100, vllm=interpreter()), "hf", "lm_eval is not installed beside vLLM in `/opt/python`"),
        (on(H100, vllm=interpreter("lm-eval")), "vllm", "there is a GPU, and vLLM in `/opt/python`"),
        (on(A100, vllm=interpreter("lm-eval")), "vllm", "there is a GPU, and vLLM in `/opt/python`"),
    ],
)
def test_auto_goes_by_the_machine_and_not_by_the_checkpoint(place: Workplace, backend: str, why: str) -> None:
    assert _automatic(place) == (backend, why)


def test_a_scheme_that_vllm_cannot_serve_here_is_refused_by_the_doctors_check(tmp_path: Path) -> None:
    from fp8cli.core.machine.probes import has_amx

    if has_amx():
        pytest.skip("a processor with AMX serves blocks")
    block = quantize_stories(tmp_path / "block", "FP8_BLOCK")
    asked = request(checkpoint=str(block), backend="vllm")
    with pytest.raises(CannotRun, match="does not run"):
        examine(choose_workplace(asked, subject_of(asked)), subject_of(asked))


def test_an_interpreter_without_lm_eval_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    asked = request(python=tmp_path / "bare")
    with pytest.raises(CannotRun) as refusal:
        examine(choose_workplace(asked, subject_of(asked)), subject_of(asked))
    assert "not installed" in refusal.value.message or "torch" in refusal.value.message
    assert str(tmp_path / "bare") in (refusal.value.hint or "")


def test_a_checkpoint_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        subject_of(request(checkpoint=str(tmp_path)))


def test_labels_say_what_a_checkpoint_is(tmp_path: Path) -> None:
    fp8 = quantize_stories(tmp_path / "fp8")
    assert subject_of(request()).label == "base"
    assert subject_of(request(checkpoint=str(fp8))).label == "fp8"
    assert subject_of(request(checkpoint=str(fp8))).quantization == "FP8_DYNAMIC, compressed-tensors"


@pytest.mark.parametrize(
    "wishes",
    [
        {"batch_size": 8},
        {"limit": 40.0},
        {"sample": 40},
        {"sample": 40, "seed": 1},
        {"num_fewshot": 1},
        {"dtype": "float32"},
        {"max_length": 100},
        {"backend": "vllm"},
        {"chat_template": True},
        {"system_instruction": "Be brief."},
        {"gen_kwargs": "temperature=0"},
        {"model_args": ("softmax_dtype=bfloat16",)},
        {"data_parallel": 2},
        {"full_hash": True},
        {"device": "cuda"},
    ],
)
def test_each_setting_that_decides_changes_the_key(wishes: dict[str, Any]) -> None:
    assert key(**wishes) != key()


@pytest.mark.parametrize(
    "wishes",
    [
        {"label": "other"},
        {"rerun": True},
        {"fidelity": False},
        {"seed": 7},
        {"stall_timeout": 60.0},
        {"tasks": (TASK, "lambada_openai")},
        {"runs": Path("elsewhere")},
        {"model_args": ("softmax_dtype=float32",)},
    ],
)
def test_what_decides_nothing_leaves_the_key_alone(wishes: dict[str, Any]) -> None:
    assert key(**wishes) == key()


def test_a_whole_number_of_items_is_the_same_however_it_is_written() -> None:
    assert key(limit=40) == key(limit=40.0)


def test_a_scale_that_changed_changes_the_key(tmp_path: Path) -> None:
    fp8 = quantize_stories(tmp_path / "fp8")
    before = key(checkpoint=str(fp8), full_hash=True)
    damaged = change(fp8, tmp_path / "damaged", lambda tensors: set_scale(tensors, SCALE, 3, 4.0))
    assert key(checkpoint=str(damaged), full_hash=True) != before
    # A copy with the same bytes is the same, once all of them are looked at.
    assert key(checkpoint=str(shutil.copytree(fp8, tmp_path / "copy")), full_hash=True) == before


def test_a_tokenizer_that_changed_changes_the_key(tmp_path: Path) -> None:
    copy = shutil.copytree(STORIES, tmp_path / "copy")
    before = key(checkpoint=str(copy), full_hash=True)
    config = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "<pad>"}), "utf-8")
    assert key(checkpoint=str(copy), full_hash=True) != before


@pytest.mark.parametrize("file", ["mine.yaml", "words.py", "data.jsonl"])
def test_the_content_of_the_users_own_tasks_changes_the_key(tmp_path: Path, file: str) -> None:
    folder, data = tmp_path / "tasks", tmp_path / "data.jsonl"
    folder.mkdir()
    data.write_text('{"text": "a"}\n', "utf-8")
    (folder / "mine.yaml").write_text(YAML.format(data=data), "utf-8")
    (folder / "words.py").write_text("x = 1\n", "utf-8")
    wishes: dict[str, Any] = {"task": "mine", "tasks": ("mine",), "include_paths": (folder,)}
    before = key(**wishes)
    assert key(**wishes) == before
    place = data if file == "data.jsonl" else folder / file
    place.write_text(place.read_text("utf-8") + " ", "utf-8")
    assert key(**wishes) != before


def test_lm_evals_own_tasks_are_indexed_only_where_a_name_is_found_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(YAML.format(data="x"), "utf-8")
    (tmp_path / "group.yaml").write_text("group: all_mine\ntask:\n  - mine\n  - piqa\n", "utf-8")
    assert not find_sources((TASK, "mine"), (tmp_path,)).include_defaults
    assert not find_sources((str(tmp_path / "mine.yaml"),), ()).include_defaults
    assert find_sources((TASK, "piqa"), (tmp_path,)).include_defaults
    assert find_sources(("all_mine",), (tmp_path,)).include_defaults


def test_tasks_are_traced_to_the_names_they_came_of() -> None:
    tasks = ("piqa", "arc_easy", "arc_challenge", "mmlu_law", "mmlu_math", "a", "b")
    groups = {"mmlu": ("mmlu_law", "mmlu_math")}
    assert origins(("piqa", "arc_*", "mmlu", "tag"), tasks, groups) == {
        "piqa": "piqa",
        "arc_easy": "arc_*",
        "arc_challenge": "arc_*",
        "mmlu_law": "mmlu",
        "mmlu_math": "mmlu",
        "a": "tag",
        "b": "tag",
    }
    assert origins(("tag", "other"), ("a", "b"), {}) == {"a": "tag,other", "b": "tag,other"}


def _facts(made: Keys, asked: str, task: str) -> TaskFacts:
    return TaskFacts(key=made.of(asked, task), version="1", hash="h", num_fewshot=0, items=1, samples=f"{task}.jsonl")


def test_a_record_answers_under_any_label_while_its_files_are_there(tmp_path: Path) -> None:
    made = keys()
    record = a_record(label="other", tasks={TASK: _facts(made, TASK, TASK)})
    (tmp_path / f"{TASK}.jsonl").touch()
    records = ((tmp_path, record),)
    (answer,) = find_answers(records, made, (TASK, "piqa"), None)
    assert (answer.names, answer.tasks, answer.record) == ((TASK,), (TASK,), record)
    assert find_answers(records, keys(batch_size=3), (TASK,), None) == ()
    assert find_answers(records, made, (TASK,), "q") == (answer_of(answer, (TASK,)),)
    assert find_answers(records, made, (TASK,), "other texts") == ()
    (tmp_path / f"{TASK}.jsonl").unlink()
    assert find_answers(records, made, (TASK,), None) == ()


def answer_of(answer: Any, names: tuple[str, ...]) -> Any:
    return replace(answer, names=names)


def test_names_that_cannot_be_told_apart_answer_together(tmp_path: Path) -> None:
    made = keys()
    tasks = {"a": _facts(made, "tag,other", "a"), "b": _facts(made, "tag,other", "b")}
    for name in tasks:
        (tmp_path / f"{name}.jsonl").touch()
    records = ((tmp_path, a_record(tasks=tasks)),)
    (answer,) = find_answers(records, made, ("tag", "other"), None)
    assert (answer.names, answer.tasks) == (("tag", "other"), ("a", "b"))
    assert find_answers(records, made, ("tag",), None) == ()


class _Served(BaseHTTPRequestHandler):
    answer: Callable[[], tuple[int, bytes]]

    def do_GET(self) -> None:
        code, text = type(self).answer()
        self.send_response(code if self.path == "/v1/models" else 404)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def server() -> Any:
    running = HTTPServer(("127.0.0.1", 0), _Served)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def serve(code: int, value: object) -> None:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    _Served.answer = cast("Any", staticmethod(lambda: (code, text)))


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/completions"])
def test_a_server_is_asked_for_its_model(server: str, tail: str) -> None:
    serve(200, {"data": [{"id": "org/model", "max_model_len": 300}]})
    served = ask_server(server + tail)
    assert (served.name, served.max_length) == ("org/model", 300)
    assert served.completions == f"{server}/v1/completions"
    asked = request(server=server)
    subject = open_subject(str(STORIES), None, served=True, full_hash=False, download_bars=False)
    made = choose_settings(asked, subject, choose_workplace(asked, subject), served)
    assert made.place == {"tokenizer": str(STORIES)}
    assert made.settings.dtype is None
    assert made.settings.model_args == {
        "base_url": f"{server}/v1/completions",
        "max_length": 300,
        "add_bos_token": True,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 8,
        "seed": 1234,
        "model": "org/model",
    }
    assert (subject.facts.fingerprint, subject.facts.fingerprint_of, subject.facts.path) == (None, "nothing", None)


@pytest.mark.parametrize(
    ("code", "value", "words"),
    [
        (200, {"data": []}, "names no model"),
        (200, b"<html>", "does not answer as one"),
        (401, {}, "answers 401 Unauthorized"),
    ],
)
def test_a_server_that_makes_no_sense_is_refused(server: str, code: int, value: object, words: str) -> None:
    serve(code, value)
    with pytest.raises(CannotRun, match=words):
        ask_server(server)


def test_a_server_that_is_not_there_is_refused() -> None:
    with pytest.raises(CannotRun, match="Connection refused"):
        ask_server("http://127.0.0.1:1")
