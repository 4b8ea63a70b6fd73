"""Make the bundled model from nothing: `python scripts/train_stories.py --out DIR`, then `--measure DIR`.

Stories (`stories.py`) give a byte-level BPE tokenizer and the text for a Llama of about a million parameters, trained
in FP32 on the CPU and exported as BF16. Four choices let so small a model learn to look things up within minutes:

1. A row of a batch is one whole story: a window cut at a fixed length would ask for facts that it has cut off.
2. Attention starts as a copying machine: O is the transpose of an orthogonal V, K equals Q, and `lm_head` starts equal
   to the embedding, so a head that finds a token already names it (mimetic initialisation, Trockman and Kolter, 2023).
   The two tables part at the first step and are stored apart.
3. A word told earlier in the story weighs `REPEAT_WEIGHT` times as much in the loss, for it alone can be looked up.
4. The first steps see plain stories: facts and questions, nothing in between.

The seed fixes everything; two runs on one machine with as many threads agree bit for bit.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from measure_stories import measure_and_report
from stories import generate_stories
from story_themes import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCABULARY = 1280
TOKENIZER_STORIES = 20_000
HELD_OUT_STORIES = 2_500

STEPS = 1_500
PLAIN_SHARE = 0.2
STORIES_PER_STEP = 32
STEPS_PER_POOL = 16  # Rows are sorted by length within a pool of so many steps: little padding, still mixed.
REPEAT_WEIGHT = 5.0
PEAK_RATE = 3e-3
FINAL_RATE_SHARE = 0.05
WARM_UP_STEPS = 100
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids [stories, longest], padded with `PAD_ID`, and what each weighs in the loss, 0 for padding."""

    ids: torch.Tensor
    weights: torch.Tensor


def main() -> None:
    """Train and export, or measure an export."""
    parser = argparse.ArgumentParser(description="Train the bundled story model, or measure it.")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--out", type=Path, help="folder to write the trained model to")
    work.add_argument("--measure", type=Path, metavar="DIR", help="measure the model there; rewrites its numbers")
    parser.add_argument("--seed", type=int, default=0, help="seed of stories and weights (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure_and_report(arguments.measure), indent=2))
        return
    tokenizer = train_tokenizer(arguments.seed)
    model = train(tokenizer, seed=arguments.seed, steps=arguments.steps)
    export(model, tokenizer, arguments.out)
    write_held_out(arguments.out / "heldout.jsonl", seed=arguments.seed + 1)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn byte-level BPE: all 256 bytes are in it, so every text has ids. It puts BOS in front by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(islice(generate_stories(seed, held_out=False), TOKENIZER_STORIES), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"error: the stories fill {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        add_bos_token=True,
        model_max_length=512,
    )


def train(tokenizer: PreTrainedTokenizerFast, *, seed: int, steps: int) -> LlamaForCausalLM:
    """Train a fresh model for so many steps and return it, in FP32."""
    torch.manual_seed(seed)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    started = time.monotonic()
    for step, batch in enumerate(islice(draw_batches(tokenizer, seed=seed, steps=steps), steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = weigh_loss(model(batch.ids).logits, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:5}  loss {loss.item():.3f}  {time.monotonic() - started:5.0f} s", flush=True)
    return model


def build_model() -> LlamaForCausalLM:
    """Build the untrained model: random, but for the attention, which starts by copying."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=128**-0.5,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        for layer in model.model.layers:
            attention = layer.self_attn
            torch.nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
            torch.nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
    return model


def draw_batches(tokenizer: PreTrainedTokenizerFast, *, seed: int, steps: int) -> Iterator[Batch]:
    """Yield batches without end: plain stories for the first `PLAIN_SHARE` of the steps, then all kinds."""
    dice = random.Random(seed)
    plain, full = (generate_stories(seed, held_out=False, plain=plain) for plain in (True, False))
    endings = repeatable(tokenizer)
    drawn = 0
    while True:
        stories = plain if drawn < PLAIN_SHARE * steps else full
        pool = [f"{story}.{EOS}" for story in islice(stories, STORIES_PER_STEP * STEPS_PER_POOL)]
        rows = sorted(tokenizer(pool)["input_ids"], key=len)
        starts = list(range(0, len(rows), STORIES_PER_STEP))
        dice.shuffle(starts)
        for start in starts:
            yield pad(rows[start : start + STORIES_PER_STEP], endings)
        drawn += STEPS_PER_POOL


def repeatable(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Collect the last token of every word that a question may ask for, with and without a space before it."""
    words = [word for kind in WORDS.values() for word in kind]
    spellings = [*words, *(f" {word}" for word in words)]
    return frozenset(ids[-1] for ids in tokenizer(spellings, add_special_tokens=False)["input_ids"])


def pad(rows: list[list[int]], endings: frozenset[int]) -> Batch:
    """Stack rows of ids into one batch, and weigh each token."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD_ID)
    weights = torch.zeros(len(rows), longest)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        seen: set[int] = set()
        for position, token in enumerate(row):
            weights[index, position] = REPEAT_WEIGHT if token in endings and token in seen else 1.0
            seen.add(token)
    return Batch(ids=ids, weights=weights)


def weigh_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Average the cross-entropy of the next token by weight. logits: [stories, longest, VOCABULARY]."""
    weights = batch.weights[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights).sum() / weights.sum()


def learning_rate(step: int, steps: int) -> float:
    """Warm up to the peak, then follow half a cosine down to a small share of it."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model as BF16 safetensors, with its tokenizer and what vLLM and transformers need to generate."""
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # safetensors makes files that only their owner may read, and transformers 5 names a class that 4 does not know.
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    text = json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    (folder / "tokenizer_config.json").write_text(f"{text}\n")


def write_held_out(path: Path, *, seed: int) -> None:
    """Write different held-out stories as JSON lines, numbered in order."""
    unique = dict.fromkeys(islice(generate_stories(seed, held_out=True), HELD_OUT_STORIES * 2))
    lines = [json.dumps({"id": index, "text": story}) for index, story in enumerate(islice(unique, HELD_OUT_STORIES))]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
