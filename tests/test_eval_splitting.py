"""One model in parts, as `fp8 eval` asks vLLM for it: its own classes take the words, and sizes are refused first."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fp8cli.core.evaluating.backends import Workplace
from fp8cli.core.evaluating.environment import environment_of
from fp8cli.core.evaluating.splitting import cluster_environment, refuse_split, split_args
from fp8cli.core.machine.gpus import Gpus
from fp8cli.core.sampling.data import BUNDLED_MODEL
from fp8cli.errors import CannotRun, Fp8Error, UsageError
from tests.starting import fp8
from tests.test_eval_settings import request, subject_of
from tests.test_worker_surroundings import gpus


class OnGpus(Workplace):
    """A machine with GPUs, whose torch can use them."""

    on_gpu = True  # type: ignore[assignment]


def place(found: Gpus | None = None) -> Workplace:
    """Return the workplace of vLLM, with GPUs or on a processor."""
    if found is None:
        return Workplace(checkpoint=None, python=None, backend="vllm", why="")
    made = OnGpus(checkpoint=None, python=None, backend="vllm", why="")
    made.__dict__["gpus"] = found
    return made


def refused(found: Gpus | None, **wishes: Any) -> Fp8Error:
    asked = request(backend="vllm", **wishes)
    with pytest.raises(Fp8Error) as refusal:
        refuse_split(asked, subject_of(asked), place(found))
    assert refusal.value.hint
    return refusal.value


def test_sizes_that_no_machine_could_make_are_the_command_lines_fault() -> None:
    heads = refused(gpus(8), tensor_parallel=3)
    assert isinstance(heads, UsageError)
    assert heads.message == "--tensor-parallel 3 cannot share out 4 attention heads"
    layers = refused(gpus(8), pipeline_parallel=7, tensor_parallel=1)
    assert isinstance(layers, UsageError)
    assert layers.message.startswith("--pipeline-parallel 7 cannot deal out ")


def test_parts_need_a_gpu_each_unless_a_cluster_has_them() -> None:
    few = refused(gpus(2), tensor_parallel=2, pipeline_parallel=2)
    assert isinstance(few, CannotRun)
    assert few.message == "the parts of the model take 4 GPUs, and 2 are visible"
    for found, wishes in ((gpus(4), {}), (gpus(1), {"cluster": "ray=10.0.0.1:6379"})):
        asked = request(backend="vllm", tensor_parallel=2, pipeline_parallel=2, **wishes)
        refuse_split(asked, subject_of(asked), place(found))


def test_on_a_processor_layers_stay_together_and_there_is_no_cluster() -> None:
    assert "cannot deal out layers" in refused(None, pipeline_parallel=2).message
    assert "no way to a cluster" in refused(None, cluster="ray").message
    asked = request(backend="vllm", tensor_parallel=2)
    refuse_split(asked, subject_of(asked), place())
    environment, reasons = environment_of(asked, place())
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].count("|") == 1
    assert "VLLM_CPU_OMP_THREADS_BIND" in reasons


def test_the_address_reaches_the_worker_and_no_record() -> None:
    asked = request(backend="vllm", cluster="ray=10.0.0.1:6379", tensor_parallel=4)
    assert cluster_environment(asked, {"RAY_ADDRESS": "other:1"}) == {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert cluster_environment(request(cluster="ray"), {}) == {}
    assert split_args(asked) == {"tensor_parallel_size": 4, "distributed_executor_backend": "ray"}
    environment, _ = environment_of(asked, place())
    assert "RAY_ADDRESS" not in environment
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllms_own_classes_take_what_it_is_told() -> None:
    if find_spec("vllm") is None:
        pytest.fail("vLLM is missing")
    from vllm.config.parallel import ParallelConfig
    from vllm.engine.arg_utils import EngineArgs

    told = split_args(request(backend="vllm", cluster="ray=a:1", tensor_parallel=4, pipeline_parallel=2))
    args = EngineArgs(model=str(BUNDLED_MODEL), **told)
    assert (args.tensor_parallel_size, args.pipeline_parallel_size) == (4, 2)
    config = ParallelConfig(**told)
    assert config.world_size == 8
    assert config.use_ray


def test_the_command_refuses_before_it_loads_anything(tmp_path: Path) -> None:
    words = ("eval", BUNDLED_MODEL, "--tasks", "fp8_stories", "--backend", "hf", "--cluster", "ray")
    made = fp8(tmp_path, *words)
    assert made.code == 2
    assert "--cluster is for vLLM: transformers runs on one machine" in made.err
    assert not (tmp_path / "runs").exists()
