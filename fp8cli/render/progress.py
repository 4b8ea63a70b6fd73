"""How far each command is: what its events do to a bar over bytes, or to steps."""

from typing import Final

from rich.markup import escape

from fp8cli.commands.quantize import Started
from fp8cli.core.budgeting.decision import BudgetEvent
from fp8cli.core.calibrating import calibration_events as calibrating
from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.compressing import compression_events as compressing
from fp8cli.core.delivering.delivery_events import BytesSent, DeliveryEvent, SendingBegins
from fp8cli.core.evaluating.eval_events import EvalEvent, Noted, Prepared
from fp8cli.core.evaluating.worker_events import (
    Answered,
    FidelityProgress,
    ModelLoaded,
    ModelLoading,
    Modifying,
    Observing,
    Running,
    TasksCounted,
)
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.measuring import measuring_events as measuring
from fp8cli.core.quantizing.engine import Progress as Piece
from fp8cli.errors import printable
from fp8cli.render import cluster
from fp8cli.render.byte_bar import ByteBar
from fp8cli.render.console import Output
from fp8cli.render.steps import Steps

_REFERENCE: Final = "positions of the model as it is"
_MEASURED: Final = "measured"
_SETS: Final = "sets of groups measured, at most"
_OBSERVED: Final = "texts observed for the scales"
_MODIFIED: Final = "parts prepared by llm-compressor"


class QuantizeBar(ByteBar):
    """What the progress of `fp8 quantize` looks like: that of a calibration, where there is one, then one over bytes.

    Hand it `notify` as the command's hook.
    """

    def __init__(self, output: Output) -> None:
        """Draw on stderr, in the form it can take."""
        super().__init__(output)
        self._calibration = _CalibrationSteps(output)
        self._measurement = _BudgetSteps(output)

    def notify(
        self, event: compressing.CompressionEvent | BudgetEvent | Started | Piece | DeliveryEvent | ClusterBegins
    ) -> None:
        """Take an event of `commands.quantize`."""
        match event:
            case SendingBegins():
                self._start(event.bytes_left, things="left to send")
            case BytesSent():
                self._advance(event.count)
            case ReadingBegins():
                self._start(event.bytes, things=event.what)
            case BytesRead():
                self._advance(event.bytes)
            case (
                measuring.TextsRead()
                | measuring.ModelLoading()
                | measuring.ModelLoaded()
                | measuring.ReferenceProgress()
                | measuring.Modifying()
                | measuring.StepBegins()
            ):
                self._measurement.notify(event)
            case ClusterBegins():
                cluster.show_beginning(event, self._output)
            case Started():
                self._start(event.bytes_read, total=event.tensors)
            case Piece():
                self._advance(event.bytes_read, finished=event.tensor_finished, free=event.resumed)
            case _:
                self._measurement.stop()
                self._calibration.notify(event)

    def _stop(self) -> None:
        self._measurement.stop()
        self._calibration.stop()
        super()._stop()


class ReadingBar(ByteBar):
    """What the progress of `fp8 inspect --verify` and `--against` looks like. Hand its `notify` to the command."""

    def notify(self, event: ReadingBegins | BytesRead) -> None:
        """Take an event of `core.inspection.reading`."""
        match event:
            case ReadingBegins():
                self._start(event.bytes, things=event.what)
            case BytesRead():
                self._advance(event.bytes)


class EvalBar(Steps):
    """What the progress of `fp8 eval` looks like: notes, then a bar over requests, then one over positions."""

    def notify(self, event: EvalEvent) -> None:
        """Take an event of `commands.evaluate`."""
        match event:
            case Prepared():
                self._note(_words_of(event))
                # lm-eval's own take seconds to index, and a Hub that does not answer is asked several times.
                self._start("looking up the tasks and their data", None)
            case Noted(text=text):
                self._note(text)
            case TasksCounted(tasks=tasks):
                self.stop()
                self._note(", ".join(f"{task.name}: {task.items:,} items" for task in tasks))
            case ModelLoading():
                self._start("loading the model", None)
            case Observing(done=done, total=total) | Modifying(done=done, total=total):
                what = _OBSERVED if isinstance(event, Observing) else _MODIFIED
                if self._what != what:
                    self._start(what, total)
                self._move_to(done)
            case ModelLoaded(seconds=seconds):
                self.stop()
                self._note(f"the model was loaded in {seconds:.1f} s")
            case Running(requests=requests, known=known):
                self._start("requests", requests, known)
            case Answered(count=count):
                self._move_to(self._done + count)
            case FidelityProgress(done=done, total=total):
                if self._what != "positions":
                    self._start("positions", total)
                self._move_to(done)


class _CalibrationSteps(Steps):
    """What the progress of a calibration looks like: notes, then a bar over the parts of the model."""

    def notify(self, event: compressing.CompressionEvent) -> None:
        """Take an event of `core.calibrating`, or of `core.compressing`."""
        match event:
            case compressing.ResultSaving():
                self._start("saving llm-compressor's result", None)
            case calibrating.TextsRead(samples=samples, tokens=tokens):
                self._note(f"calibration data: {samples:,} samples, {tokens:,} tokens")
            case calibrating.ModelLoading():
                self._start("loading the model for calibration", None)
            case calibrating.CalibrationBegins(samples=0):
                self._start("quantizing the model", None)
            case calibrating.CalibrationBegins(layers=layers):
                self._start("parts of the model calibrated", layers)
            case calibrating.LayerDone(number=number):
                self._move_to(number)


class MeasureBar(Steps):
    """What the progress of a measurement looks like: notes, a bar over the model as it is, then one over the parts."""

    def notify(self, event: measuring.MeasuringEvent) -> None:
        """Take an event of `core.measuring`."""
        match event:
            case measuring.TextsRead(samples=samples, tokens=tokens):
                self._note(f"texts: {samples:,} samples, {tokens:,} tokens")
            case measuring.ModelLoading():
                self._start("loading the model", None)
            case measuring.ModelLoaded(device=device, seconds=seconds):
                self.stop()
                self._note(f"the model was loaded onto {device} in {seconds:.1f} s")
            case measuring.ReferenceProgress(done=done, total=total):
                if self._what != _REFERENCE:
                    self._start(_REFERENCE, total)
                self._move_to(done)
            case measuring.Modifying(done=done, total=total):
                if self._what != _MODIFIED:
                    self._start(_MODIFIED, total)
                self._move_to(done)
            case measuring.StepBegins(number=number, of=of, name=name):
                if self._what != _MEASURED:
                    self._start(_MEASURED, of)
                self._move_to(number - 1)
                if self._bar is not None:
                    self._bar.update(self._bar.task_ids[0], description=f"{_MEASURED}, now {escape(printable(name))}")


class _BudgetSteps(MeasureBar):
    """What the progress of a choice within a budget looks like: as any measurement, with one bar over all its parts."""

    def notify(self, event: measuring.MeasuringEvent) -> None:
        """Take an event of `core.measuring`."""
        match event:
            case measuring.StepBegins(number=number, of=of):
                if self._what != _SETS:
                    self._start(_SETS, of)
                self._move_to(number - 1)
            case _:
                super().notify(event)


def _words_of(prepared: Prepared) -> str:
    where = {"hf": "transformers", "vllm": "vLLM", "server": "the server"}[prepared.backend]
    known = f"; records answer {', '.join(prepared.known)}" if prepared.known else ""
    simulated = "" if prepared.simulated is None else f", {prepared.simulated} simulated"
    what = f"{prepared.checkpoint} ({prepared.label}){simulated}: {', '.join(prepared.tasks)}"
    return f"{what} on {where}, because {prepared.why}{known}"
