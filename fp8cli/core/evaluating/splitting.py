"""One model over several GPUs, or several machines: what vLLM is told, and what it would refuse only after minutes.

--tensor-parallel shares every layer, --pipeline-parallel deals the layers out; both together take their product of
GPUs. Within a machine vLLM starts a process for each, on a cluster it asks Ray to, which finds the GPUs.

Sources, all vLLM 0.32: vllm/config/model.py `verify_with_parallel_config`; vllm/v1/executor/ray_utils.py
`initialize_ray_cluster`, which joins the cluster that RAY_ADDRESS names and knows no device for a processor;
vllm/v1/worker/gpu_model_runner.py `sync_and_gather_intermediate_tensors`, which fails on a processor.
"""

from collections.abc import Mapping

from fp8cli.core.clustering.choice import ADDRESS_VARIABLE, parse_cluster
from fp8cli.core.evaluating.backends import Workplace
from fp8cli.core.evaluating.model_args import EXECUTOR
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.evaluating.subject import Subject
from fp8cli.core.model.attention import text_config
from fp8cli.errors import CannotRun, UsageError


def split_args(request: EvaluationRequest) -> dict[str, object]:
    """Return vLLM's arguments for the parts; they stay in the record, for sums in another order round otherwise."""
    args: dict[str, object] = {"tensor_parallel_size": request.tensor_parallel}
    if request.pipeline_parallel > 1:
        args["pipeline_parallel_size"] = request.pipeline_parallel
    if request.cluster is not None:
        args[EXECUTOR] = "ray"
    return args


def cluster_environment(request: EvaluationRequest, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what leads the worker to its cluster. An address decides no result, and no record keeps it."""
    choice = parse_cluster(request.cluster, environ)
    return {} if choice is None or choice.address is None else {ADDRESS_VARIABLE: choice.address}


def refuse_split(request: EvaluationRequest, subject: Subject, workplace: Workplace) -> None:
    """Refuse parts that vLLM cannot make of this model, or has no place for here.

    Raises UsageError for sizes, CannotRun for this machine. What is not known is not checked.
    """
    if workplace.backend != "vllm":
        if request.pipeline_parallel > 1 or request.cluster is not None:
            option = "--cluster" if request.cluster is not None else "--pipeline-parallel"
            message = f"{option} is for vLLM, and this runs on transformers: {workplace.why}"
            raise CannotRun(message, hint="fp8 doctor says what vLLM needs; --backend vllm asks for it")
        return
    _refuse_sizes(request, subject)
    if not workplace.on_gpu:
        _refuse_on_processor(request)
    elif request.cluster is None:
        _refuse_too_few(request, workplace)
    if request.cluster is not None and workplace.worker.version_of("ray") is None:
        message = f"`{workplace.worker.python}` has no `ray`, by which vLLM reaches other machines"
        raise CannotRun(message, hint="install it beside vLLM, in the version that the cluster has")


def _refuse_sizes(request: EvaluationRequest, subject: Subject) -> None:
    heads, parts = subject.attention.heads, request.tensor_parallel
    if heads is not None and heads % parts:
        message = f"--tensor-parallel {parts:,} cannot share out {heads:,} attention heads"
        raise UsageError(message, hint=f"choose a number that divides {heads:,}")
    layers = text_config(subject.checkpoint.config or {}).get("num_hidden_layers")
    if isinstance(layers, int) and request.pipeline_parallel > layers:
        message = f"--pipeline-parallel {request.pipeline_parallel:,} cannot deal out {layers:,} layers"
        raise UsageError(message, hint=f"--pipeline-parallel {layers:,} is the most")


def _refuse_on_processor(request: EvaluationRequest) -> None:
    if request.cluster is not None:
        message = "vLLM has no way to a cluster on a machine whose torch uses no GPU"
        raise CannotRun(message, hint="leave --cluster out, or run fp8 on a node of the cluster that has a GPU")
    if request.pipeline_parallel > 1:
        message = "vLLM cannot deal out layers among processes on a processor"
        raise CannotRun(message, hint="leave --pipeline-parallel out; --data-parallel N shares the items instead")


def _refuse_too_few(request: EvaluationRequest, workplace: Workplace) -> None:
    if workplace.gpus.unknown is not None:
        return
    there = len(workplace.gpus.visible) or len(workplace.amd)
    wanted = request.tensor_parallel * request.pipeline_parallel
    if wanted > there:
        message = f"the parts of the model take {wanted:,} GPUs, and {there:,} {'is' if there == 1 else 'are'} visible"
        raise CannotRun(message, hint="use fewer, or those of several machines: --cluster ray=HOST:PORT")
