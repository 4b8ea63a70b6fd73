"""Generate `fp8cli/core/model/architectures.json` from the installed transformers: `--write` it, or `--check` it.

Each decoder architecture is built many times on the meta device, from configs a few layers deep whose dimensions
are all different numbers (`architecture_builds.py`). What is found in every layer of every build is required; what
comes and goes together is labelled so; and a dimension is written down as the simplest expression that is right in
all builds. An architecture that cannot be built is left out, and its reason is put on record in the table.

    python scripts/architecture_table.py --check    # exit 1 on a difference; about a minute
"""

import argparse
import dataclasses
import json
import logging
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from architecture_builds import DIMENSIONS, UNMOVED, Build, build_all
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fp8cli.core.model.architectures import ALWAYS, ArchitectureRules, evaluate, pattern_of

TABLE = Path(__file__).parents[1] / "fp8cli/core/model/architectures.json"
LEFT_OUT = {
    "encoders and encoder-decoders": """bart bert bert-generation big_bird bigbird_pegasus blenderbot
        blenderbot-small camembert data2vec-text electra ernie git marian mbart megatron-bert modernbert-decoder mvp
        pegasus plbart prophetnet reformer rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm
        xlm-roberta xlm-roberta-xl xlnet xmod""",
    "not text in, text out": """aria_text blt cpmant emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant
        gemma4_unified gemma4_unified_assistant gemma4_unified_text got_ocr2 llama4 minimax_m3_vl_text mllama moshi
        musicgen musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp""",
    "layers of their own kind, or few users left": """axk1 axk2 biogpt codegen ctrl deepseek_v4 doge gpt_neo
        gpt_neox_japanese gptj hrm_text hy_v4 inkling_text jetmoe laguna longcat_flash openai-gpt persimmon
        recurrent_gemma rwkv xglm xlstm zamba zamba2 zaya""",
}
ALSO = ("GPT2LMHeadModel",)
"""Taken in although the name does not end in ForCausalLM."""


def main() -> int:
    """Write the table, or say how it differs from what transformers says now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="compare and exit 1 on a difference")
    mode.add_argument("--write", action="store_true", help="write the table")
    arguments = parser.parse_args()
    _quieten()
    text = render(describe_all())
    if arguments.write:
        TABLE.write_text(text, "utf-8")
        return 0
    if text == TABLE.read_text("utf-8"):
        return 0
    print(f"{TABLE.name} differs from transformers {transformers.__version__}: run with --write", file=sys.stderr)
    return 1


def describe_all() -> dict[str, Any]:
    """Describe every architecture, and name those that cannot be."""
    described: dict[str, dict[str, Any]] = {}
    left_out, model_types = {}, {}
    skipped = {model_type for names in LEFT_OUT.values() for model_type in names.split()}
    for model_type, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        if not name.endswith("ForCausalLM") and name not in ALSO:
            continue
        if model_type in skipped:
            continue
        try:
            described.setdefault(name, describe(model_type, name))
            model_types[model_type] = name
        except Exception as error:  # noqa: BLE001 - whatever a model class raises, its reason goes on record
            left_out[model_type] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return {
        "transformers": transformers.__version__,
        "left_out": left_out,
        "model_types": model_types,
        "architectures": described,
    }


def describe(model_type: str, name: str) -> dict[str, Any]:
    """Build one architecture in all its variants and put down what they have in common."""
    config_class: Any = CONFIG_MAPPING[model_type]
    model_class = getattr(transformers, name)
    builds, traits = build_all(config_class, model_class)
    names = _ordered(sequence for build in builds for sequence in _by_layer(build))
    aliases = {usual: own for usual, own in config_class.attribute_map.items() if usual in DIMENSIONS}
    defaults = _defaults(config_class)
    shapes = _shapes(builds, aliases, defaults)
    presence = _presences(builds)
    roles = {pattern_of(tensor.name): tensor.role for build in builds for tensor in build.tensors}
    counts = _counts(builds, aliases, defaults)
    rows = [[n, roles[n], presence.get(n, ""), shapes.get(n, ""), counts.get(n, "")] for n in names]
    used = {key for row in rows for text in row[3:] for key in re.findall(r"[a-z]\w*", text)}
    used |= {"num_hidden_layers", *(("hidden_size", "num_attention_heads") if "head_dim" in used else ())}
    entry = traits | {
        "rows": [_trim(row) for row in rows],
        "gates": sorted({pattern_of(gate) for build in builds for gate in build.gates}),
        "tie_word_embeddings": _ties_by_default(config_class, builds[0].keys),
        "aliases": aliases,
        "defaults": {key: defaults[key] for key in sorted(used) if defaults.get(key) is not None},
    }
    usual = {field.name: field.default for field in dataclasses.fields(ArchitectureRules)}
    return {key: value for key, value in sorted(entry.items()) if value not in (usual.get(key), [], {})}


def _by_layer(build: Build) -> Iterator[list[str]]:
    """Patterns of each layer by itself, with those around the layers."""
    layers = sorted({_layer(tensor.name) for tensor in build.tensors})
    for layer in layers:
        yield [pattern_of(tensor.name) for tensor in build.tensors if _layer(tensor.name) in (-1, layer)]


def _ordered(sequences: Iterable[list[str]]) -> list[str]:
    """Merge sequences into one order: a name that is new goes right before the next one that is not."""
    order: list[str] = []
    for sequence in sequences:
        known, following = set(order), None
        places: list[tuple[str, str | None]] = []
        for name in reversed(sequence):
            if name in known:
                following = name
            else:
                places.append((name, following))
        for name, following in reversed(places):
            if name not in known:
                order.insert(order.index(following) if following else len(order), name)
                known.add(name)
    return order


def _presences(builds: list[Build]) -> dict[str, str]:
    """Which patterns are in every layer of every build, and which siblings come and go together."""
    where: dict[str, set[tuple[int, int]]] = defaultdict(set)
    optional: set[str] = set()
    roles: dict[str, str] = {}
    for number, build in enumerate(builds):
        for tensor in build.tensors:
            pattern = pattern_of(tensor.name)
            roles[pattern] = tensor.role
            where[pattern].add((number, _layer(tensor.name)))
            if not tensor.is_parameter or tensor.role == "output head":
                optional.add(pattern)
    everywhere = {(number, layer) for number, build in enumerate(builds) for layer in range(build.layers)}
    once = {(number, -1) for number in range(len(builds))}
    presences, together = {}, defaultdict(list)
    for pattern, places in where.items():
        if pattern in optional:
            continue
        counted = pattern.count("*") < 2 or roles[pattern] == "linear"
        if counted and places == (everywhere if "*" in pattern else once):
            presences[pattern] = ALWAYS
        elif roles[pattern] == "fused experts" or (
            roles[pattern] in ("linear", "router") and pattern.endswith(".weight")
        ):
            together[_part(pattern), frozenset(places)].append(pattern)
    for number, patterns in enumerate(group for group in together.values() if len(group) > 1):
        presences |= dict.fromkeys(patterns, str(number + 1))
    return presences


def _shapes(builds: list[Build], aliases: Mapping[str, str], defaults: Mapping[str, int | None]) -> dict[str, str]:
    """Write each dimension of each matrix as an expression that is right in all builds."""
    sizes: dict[str, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for number, build in enumerate(builds):
        for tensor in build.tensors:
            if len(tensor.shape) == 2 and tensor.role in ("linear", "output head", "embedding", "router"):
                sizes[pattern_of(tensor.name)].append((number, tensor.shape))
    read = _Reader(builds, aliases, defaults)
    return {
        pattern: ",".join(read.expression({(n, shape[side]) for n, shape in seen}) for side in (0, 1))
        for pattern, seen in sizes.items()
    }


def _counts(builds: list[Build], aliases: Mapping[str, str], defaults: Mapping[str, int | None]) -> dict[str, str]:
    """How many experts a layer has, for each pattern with a second number."""
    found: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for number, build in enumerate(builds):
        for tensor in build.tensors:
            pattern = pattern_of(tensor.name)
            if pattern.count("*") == 2 and tensor.role == "linear":
                found[pattern][number, _layer(tensor.name)] += 1
    read = _Reader(builds, aliases, defaults)
    counts = {p: read.expression({(n, count) for (n, _), count in layers.items()}) for p, layers in found.items()}
    return {pattern: count for pattern, count in counts.items() if count != "?"}


class _Reader:
    """Finds the simplest expression over config keys that gives the sizes seen in the builds."""

    def __init__(self, builds: list[Build], aliases: Mapping[str, str], defaults: Mapping[str, int | None]) -> None:
        """Evaluate every candidate once in every build."""
        rules = ArchitectureRules(name="", origin="table", tensors=(), aliases=aliases, defaults=defaults)
        self.values: dict[str, tuple[int | None, ...]] = {}
        for expression in _candidates(
            sorted(key for key in {*builds[0].keys, *defaults} if key in DIMENSIONS or not UNMOVED.search(key)), aliases
        ):
            values = tuple(evaluate(expression, lambda key: rules.value(key, build.keys)) for build in builds)  # noqa: B023
            self.values[expression] = values

    def expression(self, seen: set[tuple[int, int]]) -> str:
        """Return the first candidate that is never wrong, and known in more than one build; else `?`."""
        if len({number for number, _ in seen}) < len(seen):
            return "?"
        for expression, values in self.values.items():
            known = [(number, size) for number, size in seen if values[number] is not None]
            if all(values[number] == size for number, size in known) and len(known) > len(seen) // 2:
                return expression
        return "?"


def _candidates(keys: list[str], aliases: Mapping[str, str]) -> list[str]:
    """Expressions a dimension may be, simplest first."""
    keys = sorted({*keys} | ({"head_dim"} - aliases.keys()))
    counts = [key for key in keys if re.search(r"heads|n_head|experts$|groups|expand", key)]
    widths = [key for key in keys if key.endswith(("_dim", "_rank"))]
    hidden, heads, groups = (
        key if key in keys else aliases.get(key, key)
        for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    return [
        "1",
        *sorted(keys, key=lambda key: (key not in DIMENSIONS, list(DIMENSIONS).index(key) if key in DIMENSIONS else 0)),
        *(f"{count}*{key}" for count in counts for key in keys if key.endswith(("_dim", "_size"))),
        *(f"{factor}*{key}" for factor in (2, 3, 4) for key in keys),
        *(f"2*{key}*{hidden}" for key in keys if key.endswith("expand")),
        f"{groups}*{hidden}//{heads}",
        f"({heads}+2*{groups})*head_dim",
        *(f"{factor}*{heads}*head_dim" for factor in (2, 3)),
        *(f"{a}+{b}" for a in widths for b in widths if a < b),
        *(f"{count}*({a}+{b})" for count in counts for a in widths for b in widths if a < b),
    ]


def _defaults(config_class: Any) -> dict[str, int | None]:
    """Whole numbers a config class falls back to."""
    found = {field.name: field.default for field in dataclasses.fields(config_class)}
    return {key: value for key, value in found.items() if isinstance(value, int) and not isinstance(value, bool)}


def _ties_by_default(config_class: Any, keys: Mapping[str, Any]) -> bool:
    """Whether a config.json without the key means tied embeddings."""
    config = config_class(**{key: value for key, value in keys.items() if key != "tie_word_embeddings"})
    return bool(getattr(config, "tie_word_embeddings", False))


def _part(pattern: str) -> str:
    """Part of a layer a pattern belongs to: `model.layers.*.mlp`."""
    layer, star, rest = pattern.partition("*.")
    return layer + star + rest.partition(".")[0]


def _layer(name: str) -> int:
    """First number in a name, or -1."""
    found = re.search(r"(?<=\.)\d+(?=\.|$)", name)
    return int(found.group()) if found else -1


def _trim(row: list[str]) -> list[str]:
    """Drop the empty fields at the end of a row."""
    while row and not row[-1]:
        row = row[:-1]
    return row


def render(table: dict[str, Any]) -> str:
    """Share equal blocks of rows between architectures, and write one line per block and per architecture."""
    blocks: dict[str, int] = {}
    architectures = {}
    for name, entry in sorted(table["architectures"].items()):
        numbers = []
        for around, rows in _runs(entry["rows"]):
            prefix = around + "." if around else ""
            block = [prefix, *([row[0].removeprefix(prefix), *row[1:]] for row in rows)]
            text = _compact(block)
            numbers.append(blocks.setdefault(text, len(blocks)))
        architectures[name] = {"blocks": numbers} | {key: value for key, value in entry.items() if key != "rows"}
    heads = [f'"{key}":{_compact(table[key])},' for key in ("transformers", "left_out", "model_types")]
    entries = ",\n".join(f'"{name}":{_compact(entry)}' for name, entry in architectures.items())
    return "\n".join(["{", *heads, '"blocks":[', ",\n".join(blocks), "],", '"architectures":{', entries, "}", "}", ""])


def _compact(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _runs(rows: list[list[str]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Split the rows where the module around the tensor's own module changes."""
    run: list[list[str]] = []
    for row in rows:
        if run and _around(row[0]) != _around(run[-1][0]):
            yield _around(run[-1][0]), run
            run = []
        run.append(row)
    if run:
        yield _around(run[-1][0]), run


def _around(pattern: str) -> str:
    return ".".join(pattern.split(".")[:-2])


def _quieten() -> None:
    """Keep transformers' remarks on tiny configs out of the output."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
