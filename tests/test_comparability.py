"""What must be the same on both sides of a comparison: each difference is named, refused, and can be allowed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fp8cli.commands.compare import CompareReport, CompareRequest, run
from fp8cli.core.comparing.comparability import GROUPS, HARMLESS, KEYS, check_allowed
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.errors import NotComparable, UsageError
from tests.lm_eval_files import likelihood_sample, sha256, write_results
from tests.run_records import SETTINGS, write_run

ITEMS = [likelihood_sample(number, right=number % 3 > 0) for number in range(30)]
TASKS = {"t": ITEMS}


def compare(runs: Path, *sides: str, allow: tuple[str, ...] = ()) -> CompareReport:
    evaluation = EvaluationRequest(tasks=(), runs=runs)
    return run(CompareRequest(sides=sides or ("base", "fp8"), allow=allow, evaluation=evaluation))


def changed(part: str, **fields: object) -> Mapping[str, Any]:
    return {part: fields}


DIFFERENCES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "task-version": (changed("results", versions={"t": 2.0}), "version of the task (`t`) (1.0 / 2.0)"),
    "shots": (changed("results", **{"n-shot": {"t": 5}}), "number of examples in the prompt (`t`) (0 / 5)"),
    "gen-kwargs": (
        changed("results", config={"model": "hf", "gen_kwargs": {"temperature": 1}}),
        'settings of generation (`t`) (none / {"temperature": 1})',
    ),
    "tokenizer": ({"tokenizer_sha256": "8" * 64}, f"tokenizer ({'7' * 59}… / {'8' * 59}…)"),
    "chat-template": (changed("results", chat_template_sha="abc"), "chat template (none / abc)"),
    "system-instruction": (
        changed("results", system_instruction="Be brief."),
        "system instruction (none / Be brief.)",
    ),
    "bos": (changed("settings", bos=False), "BOS in front of every prompt (yes / no)"),
    "backend": (changed("settings", backend="vllm"), "backend (hf / vllm)"),
    "dtype": (changed("settings", dtype="float16"), "dtype (bfloat16 / float16)"),
    "max-length": (changed("settings", max_length=256), "longest input in tokens (512 / 256)"),
    "seeds": (
        changed("settings", seeds={"random": 1}),
        "seeds (fewshot=1234, numpy=1234, random=0, torch=1234 / random=1)",
    ),
    "model-args": (
        changed("settings", model_args={"softmax_dtype": "bfloat16"}),
        "arguments of the model class (softmax_dtype=float32 / softmax_dtype=bfloat16)",
    ),
    "environment": (
        changed("settings", environment={"VLLM_BATCH_INVARIANT": "1"}),
        "environment variables of the worker (none / VLLM_BATCH_INVARIANT=1)",
    ),
    **{
        key: (
            changed("settings", versions={**SETTINGS.versions, key: "9.9"}),
            f"version of {key} ({SETTINGS.versions[key]} / 9.9)",
        )
        for key in ("lm_eval", "transformers", "torch", "compressed-tensors")
    },
}


@pytest.mark.parametrize("key", DIFFERENCES)
def test_a_difference_is_refused_by_name_with_both_values(tmp_path: Path, key: str) -> None:
    fields, words = DIFFERENCES[key]
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS, **fields)
    with pytest.raises(NotComparable) as caught:
        compare(tmp_path)
    assert caught.value.message == f"`base` and `fp8` cannot be compared; they differ in: {words}"
    assert caught.value.hint == f"evaluate them alike, or say that it does not matter: --allow {key}"
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("key", DIFFERENCES)
def test_a_difference_that_is_allowed_is_listed(tmp_path: Path, key: str) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS, **DIFFERENCES[key][0])
    (contest,) = compare(tmp_path, allow=(key,)).comparison.contests
    assert [(each.key, each.allowed) for each in contest.differences] == [(key, True)]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        (changed("settings", batch_size=16), "batch-size"),
        ({"hardware": "another CPU"}, "hardware"),
        ({"gpus": ("NVIDIA H100",)}, "hardware"),
    ],
)
def test_what_moves_numbers_by_rounding_alone_is_listed_and_not_refused(
    tmp_path: Path, fields: Mapping[str, Any], key: str
) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS, **fields)
    (contest,) = compare(tmp_path).comparison.contests
    assert [(each.key, each.allowed) for each in contest.differences] == [(key, True)]
    assert key in HARMLESS


@pytest.mark.parametrize(
    "fields",
    [
        {"executed_as": "fake-quant", "model": {"quantization": "FP8_DYNAMIC", "fingerprint": "0" * 64}},
        changed("settings", model_args={**SETTINGS.model_args, "gpu_memory_utilization": 0.5, "pretrained": "/x"}),
        changed("settings", environment={"VLLM_CPU_KVCACHE_SPACE": "4", "HF_HUB_OFFLINE": "1"}),
        changed("settings", python="/another/python", fewshot_as_multiturn=True),
        {"executed_by": "a kernel", "resumed": True},
    ],
)
def test_the_model_and_where_it_runs_are_no_difference(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS, **fields)
    (contest,) = compare(tmp_path).comparison.contests
    assert contest.differences == ()
    assert contest.not_checked == ()


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS, settings={"dtype": "float16", "bos": False, "backend": "vllm"})
    with pytest.raises(NotComparable) as caught:
        compare(tmp_path, allow=("bos",))
    assert "they differ in: backend (hf / vllm); dtype (bfloat16 / float16)" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("--allow backend,dtype")


def test_with_several_sides_each_difference_says_whose_it_is(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS)
    write_run(tmp_path, "block", TASKS, settings={"dtype": "float16"})
    with pytest.raises(NotComparable, match=r"they differ in: dtype \(bfloat16 / float16\) in `block`$"):
        compare(tmp_path, "base", "fp8", "block")


def _refused(tmp_path: Path, other: list[dict[str, Any]], *allow: str) -> NotComparable:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", {"t": other})
    with pytest.raises(NotComparable) as caught:
        compare(tmp_path, allow=allow)
    return caught.value


def test_other_documents_are_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path, [*ITEMS[2:], likelihood_sample(77, right=True)])
    assert "documents that were asked (`t`) (2 only here (0, 1) / 1 only here (77))" in error.message
    assert error.hint is not None
    assert error.hint.endswith("--allow items")


@pytest.mark.parametrize(("field", "key"), [("prompt_hash", "prompts"), ("target_hash", "targets")])
def test_one_item_that_was_asked_in_other_words_is_refused(tmp_path: Path, field: str, key: str) -> None:
    other = [*ITEMS[:5], {**ITEMS[5], field: sha256("other")}, *ITEMS[6:]]
    ours, theirs = ITEMS[5][field][:8], sha256("other")[:8]
    error = _refused(tmp_path, other)
    assert f"{key} of 1 items of `t` ({ours}… (document 5) / {theirs}… (document 5))" in error.message


def test_a_document_that_moved_is_no_pair_even_where_that_is_allowed(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS)
    other = [{**ITEMS[0], "doc_hash": sha256("moved"), "acc": 1, "perplexity": -1.0}, *ITEMS[1:]]
    write_run(tmp_path, "fp8", {"t": other})
    (contest,) = compare(tmp_path, allow=("documents",)).comparison.contests
    (task,) = contest.tasks
    assert (task.items, task.flips and task.flips.gained) == (29, 0)
    assert task.note == "only items that both sides have count; 1 others are left out"


def test_only_common_items_count_where_others_are_allowed(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", {"t": ITEMS[:20]})
    (contest,) = compare(tmp_path, allow=("items",)).comparison.contests
    (task,) = contest.tasks
    expected = sum(row["acc"] for row in ITEMS[:20]) / 20
    assert (task.items, task.metrics[0].base, task.metrics[0].other) == (20, expected, expected)
    assert task.note == "only items that both sides have count; 10 others are left out"


def test_without_samples_the_hash_of_the_task_takes_the_place_of_the_items(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS, results={"samples": False})
    write_run(tmp_path, "fp8", TASKS, results={"samples": False, "task_hashes": {"t": sha256("other")}})
    with pytest.raises(NotComparable, match="hash over documents, prompts and targets"):
        compare(tmp_path)
    (contest,) = compare(tmp_path, allow=("task",)).comparison.contests
    assert not contest.tasks[0].metrics[0].paired


def test_without_samples_the_number_of_items_is_compared(tmp_path: Path) -> None:
    ours = write_results(tmp_path / "ours", TASKS, samples=False)
    theirs = write_results(tmp_path / "theirs", {"t": ITEMS[:20]}, samples=False)
    with pytest.raises(NotComparable, match=r"documents that were asked \(`t`\) \(30 / 20\)"):
        compare(tmp_path, str(ours), str(theirs))


def test_what_plain_lm_eval_does_not_say_is_not_checked_and_no_refusal(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS)
    other = write_results(tmp_path / "plain", TASKS)
    (contest,) = compare(tmp_path, "base", str(other)).comparison.contests
    assert contest.differences == ()
    for what in ("tokenizer", "version of torch", "BOS in front of every prompt", "hardware"):
        assert what in contest.not_checked
    for what in ("dtype", "backend", "chat template", "prompts, item by item", "version of transformers"):
        assert what not in contest.not_checked


def test_what_plain_lm_eval_says_is_refused_where_it_differs(tmp_path: Path) -> None:
    ours = write_results(tmp_path / "ours", TASKS)
    args = "pretrained=x,dtype=float16,add_bos_token=False"
    config = {"model": "vllm", "model_args": args, "batch_size": "auto"}
    theirs = write_results(tmp_path / "theirs", TASKS, config=config, lm_eval_version="0.4.9")
    with pytest.raises(NotComparable) as caught:
        compare(tmp_path, str(ours), str(theirs))
    for words in ("backend (hf / vllm)", "dtype (bfloat16 / float16)", "version of lm_eval (0.4.13 / 0.4.9)"):
        assert words in caught.value.message
    assert "batch size" not in caught.value.message


def test_arguments_typed_as_text_are_the_arguments_that_they_mean(tmp_path: Path) -> None:
    typed = {"model": "hf", "model_args": "pretrained=a,add_bos_token=True,enable_thinking=False,max_length=9"}
    given = {"model": "hf", "model_args": {"pretrained": "b", "add_bos_token": True, "enable_thinking": False}}
    ours = write_results(tmp_path / "ours", TASKS, config=typed)
    theirs = write_results(tmp_path / "theirs", TASKS, config=given)
    (contest,) = compare(tmp_path, str(ours), str(theirs)).comparison.contests
    assert contest.differences == ()
    assert "BOS in front of every prompt" not in contest.not_checked


def test_tasks_that_only_one_side_has_are_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"t": ITEMS, "mine": ITEMS})
    write_run(tmp_path, "fp8", {"t": ITEMS, "yours": ITEMS})
    (contest,) = compare(tmp_path).comparison.contests
    assert [task.task for task in contest.tasks] == ["t"]
    assert contest.notes == (
        "only `base` has `mine`, so that is left out",
        "only `fp8` has `yours`, so that is left out",
    )


def test_no_task_in_common_is_not_comparable(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"mine": ITEMS})
    write_run(tmp_path, "fp8", {"yours": ITEMS})
    with pytest.raises(NotComparable, match="`base` and `fp8` have no task in common: `mine` / `yours`"):
        compare(tmp_path)


def test_the_same_checkpoint_on_both_sides_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS, model={"fingerprint": "a" * 64})
    write_run(tmp_path, "fp8", TASKS, model={"fingerprint": "a" * 64})
    (contest,) = compare(tmp_path).comparison.contests
    assert contest.notes == ("`base` and `fp8` are the same checkpoint, so this compares a thing with itself",)
    (contest,) = compare(tmp_path, "base", "base").comparison.contests
    assert contest.notes == ("`base` and `base` are the same evaluation, so this compares a thing with itself",)


def test_keys_may_be_joined_by_commas_and_stand_for_several() -> None:
    assert check_allowed(("bos, dtype", "versions")) == {"bos", "dtype", *GROUPS["versions"]}
    with pytest.raises(UsageError, match="--allow typo: there is no such setting") as caught:
        check_allowed(("bos", "typo"))
    assert caught.value.hint is not None
    assert all(key in caught.value.hint for key in KEYS)


def test_a_hostile_setting_is_escaped_in_the_refusal(tmp_path: Path) -> None:
    write_run(tmp_path, "base", TASKS)
    write_run(tmp_path, "fp8", TASKS, results={"system_instruction": "\x1b[31m" + "x" * 10_000})
    with pytest.raises(NotComparable) as caught:
        compare(tmp_path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
