"""Which layers of a model keep what of each token: all of it, a window, a latent vector, or no token at all.

Read from `config.json` alone, by the rules of transformers' config classes, which are what vLLM goes by. A model
whose rule is not in this table has no kinds, only the reason why they are not known: none is guessed from its name.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["full", "sliding", "chunked", "latent", "hybrid", "state", "none"]
"""Of a layer: keys and values of every token; of the last ones, a window long; of those in the same chunk; one latent
vector for each token (MLA); every token's and a state besides; a state of constant size alone; nothing at all."""

_WORDS: Final[Mapping[str, Kind]] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "hybrid": "hybrid",
    "linear_attention": "state",
    "mamba": "state",
    "conv": "state",
    "mlp": "none",
    "moe": "none",
}
"""What `layer_types` and `layers_block_type` say, in all spellings of published configs."""

_LISTS: Final = ("layer_types", "layers_block_type")

_LETTERS: Final[Mapping[str, Kind]] = {"*": "full", "M": "state", "-": "none", "E": "none"}
"""Of Nemotron-H's `hybrid_override_pattern`."""


@dataclass(frozen=True, kw_only=True)
class _Every:
    """Every so-many-th layer attends to all; those between do something less."""

    period: int
    between: Kind = "sliding"
    window: int | None = None
    """Of the config class, for a config.json without one."""
    key: str | None = None
    """Key of config.json that changes the period."""


_EVERY: Final[Mapping[str, _Every]] = {
    "gemma2": _Every(period=2, window=4096),
    "vaultgemma": _Every(period=2, window=4096),
    "gpt_oss": _Every(period=2, window=128),
    "cohere2": _Every(period=4, window=4096, key="sliding_window_pattern"),
    "exaone4": _Every(period=4, window=4096, key="sliding_window_pattern"),
    "olmo3": _Every(period=4, window=4096),
    "gemma3n_text": _Every(period=5, window=512),
    "gemma3_text": _Every(period=6, window=4096, key="sliding_window_pattern"),
    "gemma4_text": _Every(period=6, window=512),
    "llama4_text": _Every(period=4, between="chunked", window=8192, key="no_rope_layer_interval"),
    "qwen3_next": _Every(period=4, between="state", key="full_attention_interval"),
    "qwen3_5_text": _Every(period=4, between="state", key="full_attention_interval"),
    "qwen3_5_moe_text": _Every(period=4, between="state", key="full_attention_interval"),
}

_WINDOW_OF: Final[Mapping[str, int]] = {"mistral": 4096}
"""Window of a config class all of whose layers are alike, for a config.json without the key."""

_SWITCHED: Final = frozenset("qwen2 qwen3 qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text qwen3_moe".split())
"""Models whose window counts only with `use_sliding_window`, from layer `max_window_layers` on."""

_ALIKE: Final = frozenset(
    """
    apertus arcee bitnet bloom cohere ernie4_5 ernie4_5_moe falcon flex_olmo gemma glm glm4 glm4_moe gpt2 gpt-sw3
    gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jais2 llama
    minimax_m2 ministral3 mistral mixtral mpt nemotron olmo olmo2 olmoe opt phi phi3 phimoe qwen2_moe qwen3_vl_moe_text
    qwen3_vl_text seed_oss smollm3 solar_open stablelm starcoder2
    """.split()
)
"""Models all of whose layers do the same: attend to all, or to a window where the config has one."""

_LATENT: Final = frozenset("deepseek_v2 deepseek_v3 glm4_moe_lite kimi_k2 kimi_linear longcat_flash".split())
"""Models that vLLM serves with multi-head latent attention."""

_STATE: Final = frozenset("mamba mamba2 falcon_mamba".split())

_SPARSE: Final = frozenset("deepseek_v32 deepseek_v4 glm_moe_dsa".split())

_LISTED: Final = frozenset(
    "afmoe bamba cwm dots1 falcon_h1 granite_swa granitemoe_swa granitemoehybrid jamba lfm2 lfm2_moe mellum minimax "
    "ministral nemotron_h olmo_hybrid".split()
)
"""Models that name the kind of every layer, or whose older configs have a rule of their own below."""


@dataclass(frozen=True, kw_only=True)
class LayerKinds:
    """What each layer keeps, and the window of those that have one."""

    kinds: tuple[Kind, ...] = ()
    window: int | None = None
    """Tokens, of the sliding layers or of a chunk."""
    unknown: str | None = None
    """Why nothing is known, as the end of a sentence; then `kinds` is empty."""


def read_layer_kinds(config: Mapping[str, object], layers: int) -> LayerKinds:
    """Tell what each of the `layers` layers keeps. `config`: of the text model, as it stands in config.json."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return LayerKinds(unknown="its config.json names no model_type")
    if config.get("is_encoder_decoder") is True:
        return LayerKinds(unknown="an encoder-decoder keeps a cache for each side, and no rule for it is known")
    if model_type in _SPARSE:
        return LayerKinds(unknown="its sparse attention keeps an index besides, in a form that vLLM chooses by the GPU")
    if config.get("use_bidirectional_attention") in (True, "all"):
        return LayerKinds(unknown="it attends in both directions, and keeps no cache while it reads")
    if model_type in _LATENT:
        return _latent(model_type, config, layers)
    if model_type in _STATE:
        return _uniform("state", layers)
    if model_type in _SWITCHED:
        return _switched(model_type, config, layers)
    if model_type in _ALIKE:
        return _alike(config, layers, _WINDOW_OF.get(model_type))
    if model_type in _EVERY:
        return _every(model_type, config, layers, _EVERY[model_type])
    if model_type in _LISTED:
        return _listed(model_type, config, layers)
    return LayerKinds(unknown=f"no rule for `{model_type}` is known")


def _alike(config: Mapping[str, object], layers: int, default: int | None) -> LayerKinds:
    if _has_list(config):
        return _from_list(config, layers, None)
    window = _number(config, "sliding_window", default)
    # Zero, like null, switches the window off.
    return _uniform("sliding", layers, window) if window else _uniform("full", layers)


def _switched(model_type: str, config: Mapping[str, object], layers: int) -> LayerKinds:
    window = _number(config, "sliding_window", 4096)
    if config.get("use_sliding_window") is not True or not window:
        return _uniform("full", layers)
    if model_type == "qwen3_moe":  # Its class knows no first layers without a window.
        return _uniform("sliding", layers, window)
    first = _number(config, "max_window_layers", None)
    if first is None:
        return LayerKinds(unknown="its config.json has a window and no max_window_layers")
    if 0 < first < layers:
        return LayerKinds(unknown=f"vLLM 0.32 refuses a window on some of `{model_type}`'s layers only")
    return _uniform("sliding", layers, window) if first <= 0 else _uniform("full", layers)


def _every(model_type: str, config: Mapping[str, object], layers: int, rule: _Every) -> LayerKinds:
    if rule.between == "chunked":
        window = _number(config, "attention_chunk_size", rule.window)
        ropes = config.get("no_rope_layers")
        if isinstance(ropes, list) and ropes and not _has_list(config):
            chunked = [layer for layer, uses_rope in enumerate(ropes) if uses_rope]
            return _checked(_mixed("chunked", chunked, "full", len(ropes)), layers, window, "no_rope_layers")
    else:
        window = _number(config, "sliding_window", rule.window)
    if _has_list(config):
        return _from_list(config, layers, rule.window)
    if rule.between != "state" and not window:
        return _uniform("full", layers)
    period = config.get(rule.key, rule.period) if rule.key else rule.period
    if not isinstance(period, int) or period < 1:
        return LayerKinds(unknown=f"no rule for `{rule.key}` {period!r} is known")
    full = {*range(period - 1, layers, period), *([layers - 1] if model_type == "gemma4_text" else [])}
    return _checked(_mixed("full", full, rule.between, layers), layers, window, "sliding_window")


def _listed(model_type: str, config: Mapping[str, object], layers: int) -> LayerKinds:
    if _has_list(config):
        return _from_list(config, layers, None)
    full: Container[object] | None = None
    match model_type:
        case "falcon_h1":
            return _uniform("hybrid", layers)
        case "jamba":
            period, offset = _number(config, "attn_layer_period", 8), _number(config, "attn_layer_offset", 4)
            full = range(offset, layers, period) if period and offset is not None else None
        case "bamba":
            full = _list(config, "attn_layer_indices")
        case "lfm2":
            full = _list(config, "full_attn_idxs")
        case "nemotron_h" if isinstance(config.get("hybrid_override_pattern"), str):
            letters = str(config["hybrid_override_pattern"])
            if set(letters) <= set(_LETTERS):
                return _checked(tuple(_LETTERS[letter] for letter in letters), layers, None, "hybrid_override_pattern")
        case "minimax" if isinstance(config.get("attn_type_list"), list):
            full = [layer for layer, kind in enumerate(_list(config, "attn_type_list") or ()) if kind == 1]
        case _:
            pass
    if full is None:
        return LayerKinds(unknown="its config.json does not say which layers attend to what")
    return LayerKinds(kinds=_mixed("full", full, "state", layers))


def _latent(model_type: str, config: Mapping[str, object], layers: int) -> LayerKinds:
    if model_type != "kimi_linear":
        return _uniform("latent", layers)
    linear = config.get("linear_attn_config")
    full = linear.get("full_attn_layers") if isinstance(linear, Mapping) else None
    if not isinstance(full, list):
        return LayerKinds(unknown="its config.json does not say which layers attend to what")
    # Counted from one.
    latent = [number - 1 for number in full if isinstance(number, int)]
    return LayerKinds(kinds=_mixed("latent", latent, "state", layers))


def _uniform(kind: Kind, layers: int, window: int | None = None) -> LayerKinds:
    return LayerKinds(kinds=(kind,) * layers, window=window)


def _mixed(kind: Kind, chosen: Container[object], rest: Kind, layers: int) -> tuple[Kind, ...]:
    """Give the chosen layers one kind and all others another."""
    return tuple(kind if layer in chosen else rest for layer in range(layers))


def _has_list(config: Mapping[str, object]) -> bool:
    return any(isinstance(config.get(key), list) for key in _LISTS)


def _from_list(config: Mapping[str, object], layers: int, default: int | None) -> LayerKinds:
    """Read the list that names every layer's kind."""
    key = next(key for key in _LISTS if isinstance(config.get(key), list))
    words = _list(config, key) or ()
    strange = [word for word in words if not isinstance(word, str) or word not in _WORDS]
    if strange:
        return LayerKinds(unknown=f"no rule for a layer of `{strange[0]}` is known")
    kinds = tuple(_WORDS[str(word)] for word in words)
    name = "attention_chunk_size" if "chunked" in kinds else "sliding_window"
    return _checked(kinds, layers, _number(config, name, default), key)


def _checked(kinds: tuple[Kind, ...], layers: int, window: int | None, key: str) -> LayerKinds:
    """Refuse kinds of another number of layers, and windows without a length."""
    if len(kinds) != layers:
        return LayerKinds(unknown=f"its `{key}` lists {len(kinds):,} layers and the config has {layers:,}")
    if not {"sliding", "chunked"} & set(kinds):
        return LayerKinds(kinds=kinds)
    if not window or window < 1:
        return LayerKinds(unknown="its config.json names layers with a window and no window")
    return LayerKinds(kinds=kinds, window=window)


def _number(config: Mapping[str, object], key: str, default: int | None) -> int | None:
    """Return the value of `key`; null and anything that is no number count as no value."""
    value = config.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _list(config: Mapping[str, object], key: str) -> Sequence[object] | None:
    value = config.get(key)
    return value if isinstance(value, list) else None
