"""Tasks asked of a model that is in memory: lm-eval on the object itself, as often as the model takes another form.

The settings are those that `fp8 eval` would choose, and the tasks are loaded once, so that every form is asked the
same items in the same words.
"""

import json
import random
from pathlib import Path
from typing import Any, Final

import numpy as np

from fp8cli.measurer.explore_protocol import RESULTS
from fp8cli.samples.encoding import load_tokenizer
from fp8cli.worker.protocol import Job
from fp8cli.worker.results import Results
from fp8cli.worker.tasks import LoadedTasks, load_tasks

_OF_LOADING: Final = ("pretrained", "dtype")
"""Arguments of lm-eval's model class that a model in memory has no use for."""


def load_asked(evaluation: Job) -> LoadedTasks:
    """Load the tasks of an evaluation. Raises Failure for a name nobody knows, a broken task, a missing data set."""
    # As lm-eval does before tasks are loaded, which may draw from either.
    random.seed(evaluation.seeds["random"])
    np.random.seed(evaluation.seeds["numpy"])  # noqa: NPY002 - it is this generator that tasks use
    return load_tasks(evaluation)


class Asking:
    """The tasks of an evaluation, ready to be asked of a model."""

    def __init__(self, evaluation: Job, loaded: LoadedTasks, model: Any, folder: Path) -> None:
        """Take the model. folder: what is answered goes into folders of it."""
        from lm_eval.models.huggingface import HFLM

        self._job, self._loaded, self._folder = evaluation, loaded, folder
        arguments = {name: value for name, value in evaluation.model_args.items() if name not in _OF_LOADING}
        self._lm = HFLM(
            pretrained=model,
            tokenizer=load_tokenizer(str(evaluation.model_args["pretrained"])),
            batch_size=evaluation.batch_size,
            **arguments,
        )
        self._asked = 0

    def ask(self, model: Any) -> str:
        """Ask everything of the model, or of a copy of it, and return the name of the folder with what it answered."""
        self._lm._model = model  # noqa: SLF001 - lm-eval's class has no other way, and to make another takes its time
        name = f"answers-{self._asked}"
        self._asked += 1
        place = self._folder / name
        place.mkdir()
        found = Results(self._job, place).evaluate(self._lm, self._loaded)
        (place / RESULTS).write_text(json.dumps(found.results), encoding="utf-8")
        return name
