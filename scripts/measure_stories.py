"""Measure a story model on its held-out stories, and write what was found where readers and tests look.

The context is the story without its last word, the target a space and that word, as in lm-eval's LAMBADA tasks.
*Accuracy*: the share of stories where each token of the word is the most likely one. *Perplexity*: exp of the mean,
over stories, of the word's negative log-likelihood, summed over its tokens. *Token perplexity* takes every token of the
story instead, each once. The same accuracy on the last sentence alone says how much of it needs the rest.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

DATE = "2026-11-24"
HARDWARE = "2-core AMD EPYC, CPU"
STORIES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model makes of the last words of some stories."""

    accuracy: float
    perplexity: float
    token_perplexity: float


def read_stories(path: Path) -> list[str]:
    """Read the text of each line of a held-out file."""
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def last_sentence(story: str) -> str:
    """Cut a story down to its last sentence."""
    return re.split(r"(?<=\.) ", story)[-1]


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stories: Sequence[str]) -> Scores:
    """Score the last word of every story, and all its tokens."""
    right, word_loss, token_loss, tokens = 0, 0.0, 0.0, 0
    for losses, hits, word_tokens in score_tokens(model, tokenizer, stories):
        right += bool(hits[-word_tokens:].all())
        word_loss += losses[-word_tokens:].sum().item()
        token_loss += losses.sum().item()
        tokens += len(losses)
    return Scores(
        accuracy=right / len(stories),
        perplexity=math.exp(word_loss / len(stories)),
        token_perplexity=math.exp(token_loss / tokens),
    )


@torch.inference_mode()
def score_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stories: Sequence[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield for each story the loss and the greedy hit of every token after BOS, and how many the last word has."""
    for start in range(0, len(stories), STORIES_AT_ONCE):
        some = stories[start : start + STORIES_AT_ONCE]
        contexts = tokenizer([story.rpartition(" ")[0] for story in some])["input_ids"]
        words = tokenizer([f" {story.rpartition(' ')[2]}" for story in some], add_special_tokens=False)["input_ids"]
        rows = [torch.tensor(context + word) for context, word in zip(contexts, words, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        # Padding stands on the right and attention looks left, so no mask is needed.
        logs = model(ids).logits.float().log_softmax(-1)
        for row, log, word in zip(rows, logs, words, strict=True):
            predicted = log[: len(row) - 1]
            losses = -predicted.gather(1, row[1:, None])[:, 0]
            yield losses, predicted.argmax(-1) == row[1:], len(word)


def measure_and_report(folder: Path) -> dict[str, object]:
    """Measure the model in `folder`; write `measured.json` and the model card beside it, and return the former."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stories = read_stories(folder / "heldout.jsonl")
    alone = score(model, tokenizer, [last_sentence(story) for story in stories])
    measured: dict[str, object] = {
        "stories": len(stories),
        **{name: round(value, 4) for name, value in asdict(score(model, tokenizer, stories)).items()},
        "last_sentence_accuracy": round(alone.accuracy, 4),
        "parameters": model.num_parameters(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "hardware": HARDWARE,
        "date": DATE,
    }
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (folder / "README.md").write_text(write_card(measured))
    return measured


def write_card(measured: dict[str, object]) -> str:
    """Write the model card around the numbers."""
    versions = ", ".join(f"{name} {number}" for name, number in dict(measured["versions"]).items())  # type: ignore[call-overload]
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# stories-llama

A Llama with {measured["parameters"]:,} parameters that was trained, not drawn at random: a change of
its numbers can be told from a change of its skill. It knows only the little world of `scripts/stories.py`: stories of
15 to 90 words whose last word was told earlier. It is test equipment, of no use for writing.

| on {measured["stories"]:,} held-out stories | |
|---|---|
| accuracy of the last word | {measured["accuracy"]:.4f} |
| accuracy given the last sentence alone | {measured["last_sentence_accuracy"]:.4f} |
| perplexity of the last word | {measured["perplexity"]:.4f} |
| perplexity of a token | {measured["token_perplexity"]:.4f} |

Measured on {measured["date"]} with {versions} on {measured["hardware"]}:

    python scripts/train_stories.py --measure fp8cli/bundled/stories-llama

Trained with `python scripts/train_stories.py --out DIR` on text made by that script; no other data was used.

- `heldout.jsonl`: one story a line, `{{"id", "text"}}`. As in LAMBADA, the target is what follows the last space. A
  hash of the text keeps these stories out of training.
- The tokenizer is byte-level BPE and puts BOS (`<s>`) in front by itself; the model was trained with it there.
- Linear weights are BF16 with sides that 128 divides; `lm_head` is not tied to the embedding.
- It was trained on single stories, at most about 130 tokens, though `max_position_embeddings` is 512.
"""
