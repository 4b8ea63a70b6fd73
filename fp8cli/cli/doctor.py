"""The words of `fp8 doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli.running import Json, Quiet, run
from fp8cli.errors import ExitCode

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 doctor · fp8 doctor ./model-FP8-dynamic · fp8 doctor --check torch --check GPU · "
    "fp8 doctor --python .venv-vllm · fp8 doctor --cluster ray=auto /shared/model"
)


def doctor(
    ckpt: Annotated[
        str | None, typer.Argument(metavar="[CKPT]", help="Does this checkpoint run here? A folder or a Hub id.")
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option("--check", help="Make this check only; may be given more than once.")
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="List the checks; make none.")] = False,
    python: Annotated[
        Path | None,
        typer.Option(help="The interpreter vLLM lives in, or its environment.  [default: FP8_VLLM_PYTHON, this, PATH]"),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ray[=ADDRESS]", help="Ask the nodes of a Ray cluster; CKPT is a folder all must see."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what this machine can do with FP8, and what to mend."""

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import doctor as command
        from fp8cli.render import doctor as rendering

        if list_checks:
            rendering.show_checks(command.list_checks(), output)
            return ExitCode.DONE
        if cluster is not None:
            from fp8cli.commands import doctor_cluster
            from fp8cli.render import doctor_cluster as cluster_rendering

            asked = doctor_cluster.ClusterDoctorRequest(cluster=cluster, folder=ckpt, checks=tuple(check or ()))
            of_cluster = doctor_cluster.run(asked)
            cluster_rendering.show(of_cluster, output)
            return of_cluster.exit_code
        request = command.DoctorRequest(checkpoint=ckpt, checks=tuple(check or ()), python=python)
        report = command.run(request)
        rendering.show(report, output)
        return report.exit_code

    run("doctor", work, json=json, quiet=quiet)
