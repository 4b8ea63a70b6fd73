"""The way that `fp8 convert` and `fp8 dequantize` share: open, decide, check the machine, make, report.

source → Checkpoint (headers), Coded → [the command's decision: Plan and papers] → checks → production → report
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fp8cli import __version__
from fp8cli.core.converting.coded import Coded, read_coded
from fp8cli.core.converting.production import Notify, Production, produce
from fp8cli.core.converting.report import ConversionReport
from fp8cli.core.delivering.ordering import DeliveryOptions, DeliveryOrder, bytes_that_stay
from fp8cli.core.doctor import environment
from fp8cli.core.fetching.streaming import Streaming, StreamOptions, foresee_streaming, order_streaming
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.core.making.placing import settle_output
from fp8cli.core.making.planning import check_place, refuse_failed
from fp8cli.core.making.source import open_files
from fp8cli.core.quantizing.outlook import foresee_serving, serving_warnings
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, PIECE_BYTES, estimate_seconds, plan_resources
from fp8cli.core.quantizing.side_files import header_fingerprint
from fp8cli.core.quantizing.tensor_rows import by_torch_name, tensor_rows, torch_name
from fp8cli.core.serving.command_line import serve_command, served_as
from fp8cli.core.serving.preflight import Preflight
from fp8cli.core.serving.requirement import Fallback, serve_options
from fp8cli.formats.addresses import mask
from fp8cli.formats.checkpoint import CONFIG, Checkpoint, Folder, LocalFolder, open_checkpoint
from fp8cli.formats.conversion_card import ConversionFacts, write_conversion_card
from fp8cli.formats.dialect_configs import without_quantization
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.provenance import PlanNote
from fp8cli.formats.quant_config import config_text
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.shard_index import INDEX
from fp8cli.formats.sources import Elsewhere, full_name_of, name_of, resolve_source

_CARD: Final = "README.md"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both commands take."""

    model: str
    out: Path | None = None
    """A folder; None: that of `delivery`."""
    delivery: DeliveryOptions = field(default_factory=DeliveryOptions)
    revision: str | None = None
    workers: int | None = None
    max_memory: str = DEFAULT_MAX_MEMORY
    dry_run: bool = False
    overwrite: bool = False
    restart: bool = False
    hashed: bool = True
    """Whether fp8.json has the SHA-256 of every file."""
    download_bars: bool = True
    piece_bytes: int = PIECE_BYTES
    streaming: StreamOptions = field(default_factory=StreamOptions)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source whose headers and configs are known; no weight of it has been read."""

    options: Options
    begun: float
    out: Path
    """Where it grows."""
    delivery: DeliveryOrder | None
    """Where it is sent; None: it stays there."""
    place: LocalFolder | Elsewhere
    streaming: Streaming | None
    """How it is streamed; None where it is here, or is downloaded."""
    checkpoint: Checkpoint
    survey: Survey
    coded: Coded


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the command made of it."""

    plan: Plan
    dialect: str
    words: str
    weights: str
    """What becomes of the weights, in a sentence for the card."""
    bit_exact: bool
    notes: tuple[str, ...]
    quantization: Mapping[str, object] | None
    """The quantization_config; None where nothing is quantized any more."""
    side_files: Mapping[str, object]
    """JSON files beside config.json, by name."""
    tags: tuple[str, ...]
    serve_note: str
    serve_options: tuple[str, ...] = ()
    fallback: Fallback | None = None
    """Why another scheme was taken than the one that was asked for."""

    def foresee(self, opened: Opened, *, required: int | None = None) -> Preflight:
        """Judge what is to be made, from its headers alone. required: a number of GPUs that it must run on."""
        config = without_quantization(opened.checkpoint.config)
        files = {name: content for name, content in self.side_files.items() if isinstance(content, Mapping)}
        return foresee_serving(
            self.plan, config, self.quantization, path=str(opened.out), required=required, side_configs=files
        )


def open_source(options: Options, suffix: str) -> Opened:
    """Open what is to be converted. suffix: for the default name of the output. Raises Fp8Error."""
    begun = time.monotonic()
    place = resolve_source(options.model, options.revision)
    streaming = order_streaming(options.streaming, place)
    default, overwrite = f"{name_of(place)}-{suffix}", options.overwrite or options.dry_run
    out, delivery = settle_output(options.delivery, options.out, place, default, overwrite=overwrite)
    checkpoint = open_checkpoint(place)
    seen = survey(place)
    return Opened(
        options=options,
        begun=begun,
        out=out,
        delivery=delivery,
        place=place,
        streaming=streaming,
        checkpoint=checkpoint,
        survey=seen,
        coded=read_coded(seen),
    )


def carry_out(opened: Opened, decision: Decision, serving: Preflight, notify: Notify) -> ConversionReport:
    """Make what was decided, or with a dry run only say what that would be. Raises Fp8Error.

    serving: what was foreseen of it.
    """
    options, plan, out = opened.options, decision.plan, opened.out
    resources = plan_resources(
        plan,
        device="cpu",  # A code takes less time to multiply than to carry to a GPU.
        workers=options.workers,
        max_memory=options.max_memory,
        cpus=environment.usable_cpus(),
        piece_bytes=options.piece_bytes,
    )
    place, checkpoint = opened.place, opened.checkpoint
    streaming, streamed = foresee_streaming(opened.streaming, plan, place, options.piece_bytes)
    window = 0 if streamed is None else streamed.window_bytes
    checks = check_place(
        out,
        plan,
        copies=1,
        before_bytes=0,
        memory_bytes=resources.memory_bytes,
        stays_bytes=bytes_that_stay(opened.delivery, plan, out.parent, workers=resources.workers),
        window_bytes=window,
    )
    if not options.dry_run:
        refuse_failed(checks)
    commit = place.commit if isinstance(place, HubRepo) else None
    seconds = estimate_seconds(plan)
    done = None
    if not options.dry_run:
        source = open_files(place, checkpoint, streaming, progress=options.download_bars)
        checkpoint = source.checkpoint
        production = Production(
            model=mask(options.model),
            name=full_name_of(opened.place),
            source=source,
            plan=plan,
            note=_note(decision, opened.coded),
            tools={"fp8cli": __version__},
            becomes=decision.dialect,
            papers=_papers(checkpoint, source.folder, decision, opened, commit),
            out=out,
            resources=resources,
            overwrite=options.overwrite,
            restart=options.restart,
            hashed=options.hashed,
            delivery=opened.delivery,
        )
        done = produce(production, notify)
        seconds = time.monotonic() - opened.begun
        if streamed is not None:
            streamed = replace(streamed, facts=done.streamed)
    goes = out if opened.delivery is None or opened.delivery.keep else opened.delivery.address.text
    return ConversionReport(
        model=mask(options.model),
        revision=commit,
        out=goes,
        dialect_before=opened.coded.called,
        words_before=opened.coded.words,
        dialect_after=decision.dialect,
        words_after=decision.words,
        bit_exact=decision.bit_exact,
        dtype=torch_name(plan.dtype),
        dry_run=options.dry_run,
        counts=plan.counts,
        bytes_before=by_torch_name(plan.bytes_before),
        bytes_after=by_torch_name(plan.bytes_after),
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written,
        shards=len(plan.shards),
        workers=resources.workers,
        memory_bytes=resources.memory_bytes,
        kept_modules=plan.ignored_modules,
        left_behind=checkpoint.left_behind,
        checks=checks,
        notes=decision.notes,
        warnings=serving_warnings(serving),
        harmed=() if done is None else done.written.harmed,
        findings=() if done is None else done.findings,
        seconds=seconds,
        bytes_resumed=0 if done is None else done.written.bytes_resumed,
        streamed=streamed,
        serving=serving,
        fallback=decision.fallback,
        delivery=None if done is None else done.delivered,
        serve_command=serve_command(served_as(goes), *decision.serve_options, *serve_options(serving)),
        serve_note=decision.serve_note,
        tensors=tensor_rows(plan),
    )


def _papers(
    checkpoint: Checkpoint, folder: Folder, decision: Decision, opened: Opened, commit: str | None
) -> Mapping[str, str]:
    """Write, in memory, the files that say what the output is."""
    plan, out = decision.plan, opened.out
    papers: dict[str, str] = {}
    if plan.index is not None:
        papers[INDEX] = _json(plan.index)
    papers.update((name, _json(content)) for name, content in decision.side_files.items())
    facts = ConversionFacts(
        name=out.name,
        source=full_name_of(opened.place),
        source_is_hub_id=commit is not None,
        source_version=commit or header_fingerprint(checkpoint),
        before=f"{opened.coded.called}: {opened.coded.words}",
        after=f"{decision.dialect}: {decision.words}",
        weights=decision.weights,
        tags=decision.tags,
        kept=plan.ignored_modules if plan.scheme is not None else None,
        bytes_before=sum(plan.bytes_before.values()),
        bytes_after=sum(plan.bytes_after.values()),
        notes=decision.notes if decision.fallback is None else (decision.fallback.sentence, *decision.notes),
        serve_command=serve_command(out.name, *decision.serve_options),
    )
    source_card = folder.read(_CARD).decode(errors="replace") if _CARD in checkpoint.side_files else None
    papers[_CARD] = write_conversion_card(facts, source_card)
    papers[CONFIG] = config_text(
        without_quantization(checkpoint.config),
        decision.quantization,
        dtype=DTYPES[plan.dtype].torch_name if plan.dtype_is_new else None,
    )
    return papers


def _note(decision: Decision, coded: Coded) -> PlanNote:
    plan = decision.plan
    return PlanNote(
        command="dequantize" if decision.quantization is None else "convert",
        made=decision.dialect,
        words=f"from {coded.called}: {decision.words}",
        scheme=None if plan.scheme is None else plan.scheme.name,
        kv_cache=plan.kv_cache,
        dtype=DTYPES[plan.dtype].torch_name,
        engine="streaming",
        targets=(),
        ignore=(),
        modifiers=(),
        counts=plan.counts,
        fingerprint=plan.fingerprint(),
    )


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
