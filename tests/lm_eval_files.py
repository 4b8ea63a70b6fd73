"""Results and samples as lm-eval 0.4.13 writes them, made by hand: small, and with answers that are known."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05.678901"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def likelihood_sample(number: int, *, right: bool, loss: float = 1.0, prompt: str | None = None) -> dict[str, Any]:
    """One document of a task like LAMBADA: whether the last word is the most likely one, and how likely it is."""
    prompt = f"prompt {number}" if prompt is None else prompt
    return {
        "doc_id": number,
        "doc": {"text": f"document {number}"},
        "target": f" word{number}",
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": f" word{number}"}},
        "resps": [[[str(-loss), str(right)]]],
        "filtered_resps": [[str(-loss), str(right)]],
        "filter": "none",
        "metrics": ["perplexity", "acc"],
        "doc_hash": sha256(f"document {number}"),
        "prompt_hash": sha256(prompt),
        "target_hash": sha256(f" word{number}"),
        "perplexity": -loss,
        "acc": int(right),
    }


def choice_sample(number: int, likelihoods: Sequence[float], *, gold: int = 0) -> dict[str, Any]:
    """One document with as many choices as likelihoods; they are 1, 2, 3, … characters long."""
    chosen = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    normed = max(range(len(likelihoods)), key=lambda place: likelihoods[place] / (place + 1))
    pairs = [[str(each), "False"] for each in likelihoods]
    return {
        "doc_id": number,
        "doc": {"text": f"document {number}"},
        "target": str(gold),
        "arguments": {
            f"gen_args_{place}": {"arg_0": f"prompt {number}", "arg_1": " " + "abcdefgh"[place] * (place + 1)}
            for place in range(len(likelihoods))
        },
        "resps": [[pair] for pair in pairs],
        "filtered_resps": pairs,
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": sha256(f"document {number}"),
        "prompt_hash": sha256(f"prompt {number}"),
        "target_hash": sha256(str(gold)),
        "acc": float(chosen == gold),
        "acc_norm": float(normed == gold),
    }


def text_sample(number: int, whole: str, taken: str, *, score: float) -> dict[str, Any]:
    """One document that a text was generated for, and what a filter took out of it."""
    return {
        "doc_id": number,
        "doc": {"text": f"document {number}"},
        "target": "gold",
        "arguments": {"gen_args_0": {"arg_0": f"prompt {number}", "arg_1": {"until": ["\n"]}}},
        "resps": [[whole]],
        "filtered_resps": [taken],
        "filter": "strict",
        "metrics": ["exact_match"],
        "doc_hash": sha256(f"document {number}"),
        "prompt_hash": sha256(f"prompt {number}"),
        "target_hash": sha256("gold"),
        "exact_match": score,
    }


def page_sample(number: int, loss: float, words: int) -> dict[str, Any]:
    """One document whose own likelihood is measured."""
    text = f"page {number}"
    return {
        "doc_id": number,
        "doc": {"page": text},
        "target": text,
        "arguments": {"gen_args_0": {"arg_0": text}},
        "resps": [[str(-loss)]],
        "filtered_resps": [str(-loss)],
        "filter": "none",
        "metrics": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
        "doc_hash": sha256(text),
        "prompt_hash": sha256(text),
        "target_hash": sha256(text),
        "word_perplexity": [-loss, words],
        "byte_perplexity": [-loss, 5 * words],
        "bits_per_byte": [-loss, 5 * words],
    }


def aggregate(metric: str, values: Sequence[Any]) -> float:
    """The score of a task, written out once more as lm-eval's metrics define it."""
    if metric in {"word_perplexity", "byte_perplexity", "bits_per_byte"}:
        loss = -sum(value[0] for value in values) / sum(value[1] for value in values)
        return loss / math.log(2) if metric == "bits_per_byte" else math.exp(loss)
    mean = sum(values) / len(values)
    return math.exp(-mean) if metric == "perplexity" else mean


def write_results(
    folder: Path, tasks: Mapping[str, Sequence[Mapping[str, Any]]], *, samples: bool = True, **changes: Any
) -> Path:
    """Write the results of some tasks, and their samples beside them. Returns the results file.

    changes: keys of the file to be set, or to be left out where they are `...`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    better: dict[str, dict[str, bool]] = {}
    for task, rows in tasks.items():
        results[task] = {"alias": task, "name": task, "sample_len": len({row["doc_id"] for row in rows})}
        better[task] = {}
        for through in dict.fromkeys(row["filter"] for row in rows):
            kept = [row for row in rows if row["filter"] == through]
            for metric in kept[0]["metrics"]:
                results[task][f"{metric},{through}"] = aggregate(metric, [row[metric] for row in kept])
                results[task][f"{metric}_stderr,{through}"] = "N/A"
                better[task][metric] = "perplexity" not in metric and metric != "bits_per_byte"
        if samples:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"samples_{task}_{DATE}.jsonl").write_text(text, encoding="utf-8")
    counts = {task: len({row["doc_id"] for row in rows}) for task, rows in tasks.items()}
    document: dict[str, Any] = {
        "results": results,
        "group_subtasks": {},
        "configs": {task: {"task": task, "output_type": "loglikelihood"} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": better,
        "n-samples": {task: {"original": 9999, "effective": count} for task, count in counts.items()},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": "org/model", "dtype": "bfloat16", "softmax_dtype": "float32"},
            "model_dtype": "torch.bfloat16",
            "batch_size": 8,
            "random_seed": 0,
            "numpy_seed": 1234,
            "torch_seed": 1234,
            "fewshot_seed": 1234,
            "gen_kwargs": None,
        },
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.17.0",
        "max_length": 512,
        "task_hashes": {task: sha256(task) for task in tasks},
        "system_instruction": None,
        "chat_template": None,
        "chat_template_sha": None,
        "fewshot_as_multiturn": None,
        "total_evaluation_time_seconds": "5.5",
        **changes,
    }
    path = folder / f"results_{DATE}.json"
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}), encoding="utf-8")
    return path
