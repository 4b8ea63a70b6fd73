"""What `fp8 quantize` is asked for, and whether its words go together. Looks at no checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.budgeting.budgets import BudgetOptions
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.compressing.engines import AUTO, Engine, choose_engine
from fp8cli.core.delivering.ordering import DeliveryOptions
from fp8cli.core.fetching.streaming import StreamOptions
from fp8cli.core.making.planning import Wish
from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, PIECE_BYTES
from fp8cli.core.serving.requirement import check_requirement
from fp8cli.errors import UsageError
from fp8cli.formats.addresses import mask
from fp8cli.formats.recipe_file import RecipeFile, read_recipe
from fp8cli.schemes import DEFAULT_SCHEME

DEFAULT_IGNORE: Final = ("lm_head",)
"""What the recipe names as ignored by default, as llm-compressor's own examples do."""

DEFAULT_TARGETS: Final = ("Linear",)


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What the user asked for."""

    model: str
    out: Path | None = None
    """A folder; None: that of `delivery`."""
    delivery: DeliveryOptions = field(default_factory=DeliveryOptions)
    scheme: str | None = None
    """None: the default."""
    kv_cache: str | None = None
    engine: str = AUTO
    modifiers: Modifiers = field(default_factory=Modifiers)
    recipe: Path | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    revision: str | None = None
    dtype: str = "auto"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    ignore: tuple[str, ...] = ()
    default_ignore: bool = True
    device: str = "auto"
    workers: int | None = None
    max_memory: str = DEFAULT_MAX_MEMORY
    tp: int | None = None
    """How many GPUs must be able to share the result; None: any number will do."""
    tp_fallback: bool = False
    """Whether FP8_DYNAMIC may take the place of blocks that cannot be split over so many."""
    cluster: str | None = None
    """As --cluster has it."""
    dry_run: bool = False
    overwrite: bool = False
    restart: bool = False
    hashed: bool = True
    """Whether fp8.json has the SHA-256 of every file."""
    download_bars: bool = True
    streaming: StreamOptions = field(default_factory=StreamOptions)
    piece_bytes: int = PIECE_BYTES
    batch_bytes: int | None = None
    """Read plus written by what a node is given at once; None: what is best."""


def settle_choice(request: QuantizeRequest) -> tuple[RecipeFile | None, Choice, Engine]:
    """Settle what is wanted, and who does it. Raises UsageError for words that do not go together."""
    check_requirement(request.tp, fallback=request.tp_fallback)
    if request.recipe is None:
        choice = choose(request.scheme or DEFAULT_SCHEME, request.kv_cache, request.modifiers)
        idle = request.targets != DEFAULT_TARGETS or request.ignore or not request.default_ignore
        if choice.scheme is None and idle:
            message = "no weight is quantized, so --targets, --ignore and --no-default-ignore would have no effect"
            raise UsageError(message, hint="leave them out, or choose a scheme")
        return None, choice, choose_engine(request.engine, choice)
    said = {
        "--scheme": request.scheme is not None,
        "--kv-cache": request.kv_cache is not None,
        "--targets": request.targets != DEFAULT_TARGETS,
        "--ignore": bool(request.ignore),
        "--no-default-ignore": not request.default_ignore,
        "--tp-fallback": request.tp_fallback,
        **dict.fromkeys(request.modifiers.words, True),
    }
    words = [word for word, is_said in said.items() if is_said]
    if words:
        message = f"a recipe says itself what {' and '.join(words)} would say"
        raise UsageError(message, hint="leave them out, or write them into the recipe")
    recipe = read_recipe(request.recipe)
    choice = Choice(scheme=None, kv_cache=None, recipe=recipe.name)
    return recipe, choice, choose_engine(request.engine, choice)


def refuse_idle_resources(request: QuantizeRequest, engine: Engine) -> None:
    """Raise UsageError for caps that the engine would not keep."""
    said = {"--workers": request.workers is not None, "--max-memory": request.max_memory != DEFAULT_MAX_MEMORY}
    words = [word for word, is_said in said.items() if is_said]
    if engine == "llmcompressor" and words:
        message = f"{' and '.join(words)} would have no effect: llm-compressor's engine holds the whole model"
        raise UsageError(message, hint="leave them out, or use what --engine streaming can do")


def wish_of(request: QuantizeRequest, choice: Choice) -> Wish:
    """Return what a plan is made for."""
    return Wish(
        model=mask(request.model),
        choice=choice,
        dtype=request.dtype,
        targets=request.targets,
        ignore=request.ignore,
        default_ignore=request.default_ignore,
    )


def ignore_of(request: QuantizeRequest) -> tuple[str, ...]:
    """Return what the recipe names as ignored."""
    return (*DEFAULT_IGNORE, *request.ignore) if request.default_ignore else request.ignore
