"""What `config.json` says about attention: heads, their sizes, what each layer keeps, and the longest context.

The text model counts, wherever its config stands. What config.json leaves out is filled in from the table of
architectures, as transformers would; what neither says is not known, and the reason is kept.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fp8cli.core.model.architectures import ArchitectureRules, find_rules
from fp8cli.core.model.layer_kinds import Kind, read_layer_kinds

_NESTED: Final = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where configs of several models in one keep that of the language model."""

_DEEPEST: Final = 2
"""How deep it may lie: Qwen-Omni keeps it in its thinker's config."""

_KEEPING: Final[tuple[Kind, ...]] = ("full", "hybrid", "sliding", "chunked", "latent")
"""Kinds of layers that keep something of each token."""

_MOST_LAYERS: Final = 2_000
"""More layers than any model has; a number beyond it is a broken config's."""

_LENGTHS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Keys of the longest context; the least of them counts, as in vLLM."""

_SCALED_ALREADY: Final = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""Kinds of RoPE scaling whose factor vLLM does not multiply into the longest context."""


@dataclass(frozen=True, kw_only=True)
class AttentionLayers:
    """Layers that keep the same of each token."""

    kind: Kind
    """`full`, `sliding`, `chunked` or `latent`."""
    layers: int
    kv_heads: int
    """1 for a latent vector, which is not split over GPUs."""
    key_size: int
    """Numbers per head and token."""
    value_size: int
    """The same; 0 for a latent vector."""
    window: int | None = None
    """Tokens that are kept; None: all."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The attention of one model."""

    heads: int | None = None
    kv_heads: int | None = None
    """None for latent attention, or where it is not known."""
    head_size: int | None = None
    groups: tuple[AttentionLayers, ...] = ()
    """Empty for a model that keeps states alone, and where nothing is known."""
    state_layers: int = 0
    """Layers that keep a state of constant size, alone or besides: Mamba, linear attention, convolutions."""
    sharing_layers: int = 0
    """Layers that use the cache of another."""
    longest: int | None = None
    """Tokens, as vLLM derives its default of --max-model-len."""
    dtype: str | None = None
    """Of the weights that are not quantized, without `torch.`: `bfloat16`."""
    unknown: str | None = None
    """Why `groups` is not known, as the end of a sentence."""


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the config of the language model: the nested one where there is one, else the whole."""
    for _ in range(_DEEPEST):
        config = next((value for key in _NESTED if isinstance(value := config.get(key), Mapping)), config)
    return config


def read_attention(config: Mapping[str, object] | None) -> Attention:
    """Read everything above from a parsed config.json; None: there is none, or it could not be read."""
    if config is None:
        return Attention(unknown="there is no config.json to tell")
    text = text_config(config)
    values = _Values(text)
    known = Attention(
        heads=values.number("num_attention_heads"),
        kv_heads=values.kv_heads(),
        head_size=values.head_size(),
        longest=_longest(text),
        dtype=_dtype(config) or _dtype(text),
    )
    layers = values.layers()
    if layers is None:
        return replace(known, unknown="its config.json does not say how many layers there are")
    if layers > _MOST_LAYERS:
        return replace(known, unknown=f"its config.json speaks of {layers:,} layers")
    if text.get("per_layer_config") and text.get("model_type") != "gemma4_text":
        return replace(known, unknown="its layers differ in a way that no rule is known for")
    read = read_layer_kinds(text, layers)
    if read.unknown is not None:
        return replace(known, unknown=read.unknown)
    sharing = values.sharing_layers(layers)
    counts = Counter(read.kinds[: layers - sharing])
    groups = []
    for kind in (kind for kind in _KEEPING if counts[kind]):
        group = values.group(kind, counts[kind], read.window)
        if isinstance(group, str):
            return replace(known, unknown=f"its config.json does not say `{group}`")
        groups.append(group)
    return replace(
        known,
        kv_heads=None if counts["latent"] else known.kv_heads,
        groups=tuple(groups),
        state_layers=counts["state"] + counts["hybrid"],
        sharing_layers=sharing,
    )


class _Values:
    """Values of config keys as transformers would see them."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self.config = config
        self.model_type = config.get("model_type")
        self.rules: ArchitectureRules | None = None
        if isinstance(self.model_type, str):
            # By model type alone: a nested config need not name its class, and may name another's.
            self.rules = find_rules({"model_type": self.model_type})

    def number(self, key: str) -> int | None:
        """Return a positive number, or None where config and table do not say it."""
        value = self.config.get(key) if self.rules is None else self.rules.value(key, self.config)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def layers(self) -> int | None:
        """Return the number of layers that attend."""
        if self.model_type == "longcat_flash":  # Each of its layers attends twice.
            decoders = _positive(self.config.get("num_layers"))
            return decoders and 2 * decoders
        listed = self.config.get("layers_block_type")
        return self.number("num_hidden_layers") or (len(listed) if isinstance(listed, list) and listed else None)

    def head_size(self) -> int | None:
        """Return the numbers per head."""
        stated = self.number("head_dim")
        hidden, heads = self.number("hidden_size"), self.number("num_attention_heads")
        return stated or (hidden // heads if hidden and heads else None)

    def kv_heads(self) -> int | None:
        """Return the heads of keys and values; one for multi-query attention."""
        match self.model_type:
            case "falcon" if self.config.get("new_decoder_architecture") is not True:
                if self.config.get("multi_query", True) is True:
                    return 1
                return self.number("num_attention_heads")
            case "falcon":
                return self.number("num_kv_heads") or self.number("num_attention_heads")
            case "gpt_bigcode":
                return 1 if self.config.get("multi_query", True) is True else self.number("num_attention_heads")
            case "mpt":
                attention = self.config.get("attn_config")
                heads = attention.get("kv_n_heads") if isinstance(attention, Mapping) else None
                return _positive(heads) or self.number("num_attention_heads")
            case _:
                return self.number("num_key_value_heads") or self.number("num_attention_heads")

    def sharing_layers(self, layers: int) -> int:
        """Return how many of the last layers use another's cache."""
        default = 15 if self.model_type == "gemma3n_text" else 0
        shared = self.config.get("num_kv_shared_layers", default)
        return shared if isinstance(shared, int) and 0 < shared < layers else 0

    def group(self, kind: Kind, layers: int, window: int | None) -> AttentionLayers | str:
        """Return layers of one kind, or the key that would tell how large their heads are."""
        if kind == "latent":
            latent, rope = self.number("kv_lora_rank"), self.number("qk_rope_head_dim")
            if latent is None or rope is None:
                return "kv_lora_rank" if latent is None else "qk_rope_head_dim"
            return AttentionLayers(kind=kind, layers=layers, kv_heads=1, key_size=latent + rope, value_size=0)
        heads, size = self.kv_heads(), self.head_size()
        if self.model_type == "gemma4_text" and kind == "full":
            heads, size = self._heads_of_gemma4(heads)
        if heads is None or size is None:
            return "num_key_value_heads" if heads is None else "head_dim"
        return AttentionLayers(
            kind="full" if kind == "hybrid" else kind,
            layers=layers,
            kv_heads=heads,
            key_size=size,
            value_size=size,
            window=window if kind in {"sliding", "chunked"} else None,
        )

    def _heads_of_gemma4(self, heads: int | None) -> tuple[int | None, int | None]:
        """Return number and size of the heads of its full layers, which differ from the others'."""
        layers = self.config.get("per_layer_config")
        if isinstance(layers, Mapping) and layers:  # As transformers 5 saves it: the same for each of them.
            own = next(iter(layers.values()))
            own = own if isinstance(own, Mapping) else {}
            return _positive(own.get("num_key_value_heads", heads)), _positive(own.get("head_dim"))
        if self.config.get("attention_k_eq_v") is True:
            heads = _positive(self.config.get("num_global_key_value_heads")) or heads
        return heads, _positive(self.config.get("global_head_dim", 512))


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _dtype(config: Mapping[str, object]) -> str | None:
    value = config.get("dtype", config.get("torch_dtype"))
    return value.removeprefix("torch.") if isinstance(value, str) else None


def _longest(config: Mapping[str, object]) -> int | None:
    """Return the longest context in tokens, as vLLM derives it."""
    stated = [value for key in _LENGTHS if (value := _positive(config.get(key))) is not None]
    if not stated:
        return None
    least = _positive(config.get("model_max_length")) or min(stated)
    scaling = config.get("rope_scaling", config.get("rope_parameters"))
    if not isinstance(scaling, Mapping) or "gemma3" in str(config.get("model_type")):
        return least
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    original = _positive(config.get("original_max_position_embeddings"))
    if kind == "longrope" and original is not None:
        return original
    if isinstance(factor, int | float) and 0 < factor < _MOST_LAYERS and kind not in _SCALED_ALREADY:
        return int(least * factor)
    return least
