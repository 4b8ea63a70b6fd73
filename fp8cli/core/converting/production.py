"""From a plan to a converted checkpoint under its name: written, examined, renamed.

    staging ← side files ← weights and scales (streaming engine) ← papers, fp8.json last → gate → published, or sent

As in core.making, but that nothing is calibrated, and that what is said of the output is written beforehand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.delivering.delivery import delivering
from fp8cli.core.delivering.delivery_events import DeliveryEvent
from fp8cli.core.delivering.ordering import DeliveryOrder
from fp8cli.core.delivering.sending import Delivered
from fp8cli.core.fetching.streaming import StreamFacts
from fp8cli.core.fetching.window_supply import WindowSupply
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.gate import pass_gate
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.making.attesting import attest
from fp8cli.core.making.production import Started
from fp8cli.core.making.source import Source
from fp8cli.core.quantizing.crew import Together
from fp8cli.core.quantizing.engine import Progress, Written, execute
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.side_files import carry_over
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.dialect_configs import QUANTIZER_FILES
from fp8cli.formats.provenance import PlanNote
from fp8cli.formats.staging import discard, disk_errors, stage

Notify = Callable[[Started | Progress | ReadingBegins | BytesRead | DeliveryEvent], None]


@dataclass(frozen=True, kw_only=True)
class Production:
    """What is to be made, from what, and where."""

    model: str
    """The source as the user named it."""
    name: str
    """The source as the card names it."""
    source: Source
    plan: Plan
    note: PlanNote
    tools: Mapping[str, str]
    """Versions of what makes the weights."""
    becomes: str
    """What is made, in a word: a dialect, or a dtype."""
    papers: Mapping[str, str]
    """Small files that say what the output is, in the order to write them: config.json is the last."""
    out: Path
    resources: Resources
    overwrite: bool
    restart: bool
    hashed: bool = True
    """Whether fp8.json has the SHA-256 of every file, or the sizes alone."""
    delivery: DeliveryOrder | None = None
    """Where it is to be sent; None: it stays here."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What came of it."""

    written: Written
    findings: tuple[Finding, ...]
    """Of the gate."""
    streamed: StreamFacts | None
    delivered: Delivered | None


def produce(production: Production, notify: Notify) -> Converted:
    """Make the output beside its final place and publish it when it is whole and sound.

    Raises Fp8Error with what is wrong. Nothing is published then; what is done is kept unless the source is at fault.
    """
    source, plan, out = production.source, production.plan, production.out
    state = source.state()
    order, workers = production.delivery, production.resources.workers
    identity = {
        "the source": state,
        "the form to make": production.becomes,
        "the plan": plan.fingerprint(),
        "the destination": None if order is None else order.identity,
    }
    with (
        stage(out, identity, restart=production.restart) as staging,
        delivering(
            order,
            staging,
            identity,
            workers=workers,
            overwrite=production.overwrite,
            restart=production.restart,
            notify=notify,
        ) as delivery,
    ):
        try:
            with disk_errors(out):
                carry_over(source.checkpoint, source.folder, staging, without=QUANTIZER_FILES)
            source.check_carried(staging)
            notify(Started(tensors=len(plan.tensors) - plan.counts.get("drop", 0), bytes_read=plan.bytes_read))
            sent, hashed = order is not None, production.hashed
            with attest(
                source.checkpoint, source.folder, staging, threads=workers, hashed=hashed, sent=sent
            ) as attestation:
                watch = Together((attestation, delivery.watch(plan)))
                with source.supply(staging, hashed=hashed) as supply:
                    written = execute(plan, supply, staging, production.resources, notify, watch=watch)
                    attestation.learn_source(supply)
                streamed = supply.facts() if isinstance(supply, WindowSupply) else None
                attestation.complete(notify)
                source.refuse_changed(state, called=production.model)
                attestation.learn(delivery.wait())
                with disk_errors(out):
                    for name, text in production.papers.items():
                        staging.write_file(name, text.encode())
                    attestation.write(
                        production.note, name=production.name, commit=source.commit, tools=production.tools
                    )
            findings = pass_gate(LocalFolder(staging.checkpoint))
            delivered = delivery.publish()
        except BadInput:
            # The source itself is at fault: there is nothing to go on from.
            discard(out)
            raise
    return Converted(written=written, findings=findings, streamed=streamed, delivered=delivered)
