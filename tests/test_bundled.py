"""The model that comes with the package: its form, its tokenizer, its held-out stories, and that it has learned."""

import json
import re
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest
import torch
from measure_stories import last_sentence, read_stories, score, write_card
from safetensors import safe_open
from stories import FEWEST_WORDS, MOST_WORDS, generate_stories, is_held_out
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

MODEL = Path(str(files("fp8cli"))) / "bundled" / "stories-llama"
MEASURED = json.loads((MODEL / "measured.json").read_text())


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return read_stories(MODEL / "heldout.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()


def test_the_weights_are_small_and_all_bf16() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 4_000_000
    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118 - no dict


def test_the_config_is_a_plain_llama_whose_sides_128_divides() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["max_position_embeddings"] == 512
    assert [config[side] % 128 for side in ("hidden_size", "intermediate_size", "vocab_size")] == [0, 0, 0]
    assert config["head_dim"] in {32, 64}


def test_the_head_is_a_table_of_its_own() -> None:
    assert json.loads((MODEL / "config.json").read_text())["tie_word_embeddings"] is False
    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        assert not torch.equal(weights.get_tensor("lm_head.weight"), weights.get_tensor("model.embed_tokens.weight"))


def test_the_tokenizer_puts_bos_in_front_by_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Nora had a kite.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    config = json.loads((MODEL / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> None:
    for text in (*stories[:100], "  two spaces,\nÜmläut und 猫 🐈\t", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_last_word_has_the_same_tokens_alone_as_in_its_story(
    tokenizer: PreTrainedTokenizerFast, stories: list[str]
) -> None:
    for story in stories:
        context, _, word = story.rpartition(" ")
        apart = tokenizer(context)["input_ids"] + tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        assert apart == tokenizer(story)["input_ids"]


def test_the_held_out_stories_are_many_and_all_different(stories: list[str]) -> None:
    path = MODEL / "heldout.jsonl"
    assert path.stat().st_size < 1_200_000
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert len(set(stories)) == len(stories) >= 2000
    assert all(FEWEST_WORDS <= len(story.split(" ")) <= MOST_WORDS for story in stories)


def test_every_last_word_was_told_earlier_but_not_in_the_last_sentence(stories: list[str]) -> None:
    for story in stories:
        context, _, word = story.rpartition(" ")
        assert word in re.findall(r"\w+", context)
        assert word not in re.findall(r"\w+", last_sentence(context))


@pytest.mark.parametrize("plain", [True, False])
def test_no_training_story_is_a_held_out_one(plain: bool, stories: list[str]) -> None:
    # Seed 0 trained the model and seed 1 drew the held-out stories; both sides are tried with both.
    held_out = set(stories)
    for seed in (0, 1):
        for story in islice(generate_stories(seed, held_out=False, plain=plain), 10_000):
            assert story not in held_out
            assert not is_held_out(story)
    assert all(map(is_held_out, stories))


def test_the_held_out_file_is_what_the_generator_makes_again(stories: list[str]) -> None:
    again = dict.fromkeys(islice(generate_stories(1, held_out=True), 2 * len(stories)))
    assert list(again)[: len(stories)] == stories


def test_the_model_knows_most_last_words_and_needs_the_story_for_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stories: list[str]
) -> None:
    some = stories[:200]
    scores = score(model, tokenizer, some)
    assert 0.60 <= scores.accuracy <= 0.95
    # Four standard errors of 200 stories: the published number is of this model, not of another.
    assert abs(scores.accuracy - MEASURED["accuracy"]) < 4 * (0.25 / 200) ** 0.5
    assert score(model, tokenizer, [last_sentence(story) for story in some]).accuracy < 0.20


def test_transformers_own_loss_agrees_with_the_measurement(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stories: list[str]
) -> None:
    story = stories[0]
    ids = torch.tensor([tokenizer(story)["input_ids"]])
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    assert score(model, tokenizer, [story]).token_perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=0.02)


def test_greedy_writing_ends_a_story_in_its_own_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stories: list[str]
) -> None:
    for story in stories[:10]:
        inputs = tokenizer(story.rpartition(" ")[0], return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]
        assert written[-1] == tokenizer.eos_token_id
        answer = tokenizer.decode(written, skip_special_tokens=True)
        word = re.match(r" (\w+)\.", answer)
        assert word is not None, answer
        assert word[1] in story


def test_the_card_says_what_was_measured() -> None:
    card = (MODEL / "README.md").read_text()
    assert card == write_card(MEASURED)
    assert card.startswith("---\nlicense: apache-2.0\n")
    for name in ("accuracy", "last_sentence_accuracy", "perplexity", "token_perplexity"):
        assert f"| {MEASURED[name]:.4f} |" in card
    assert MEASURED["date"] in card
    assert "python scripts/train_stories.py --measure fp8cli/bundled/stories-llama" in card
