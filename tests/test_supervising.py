"""core.evaluating.supervising: workers that do their work, and workers that do everything else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fp8cli.core.evaluating import supervising
from fp8cli.core.evaluating.supervising import WorkerFailed, run_workers
from fp8cli.core.evaluating.worker_events import (
    Answered,
    CountedTask,
    FidelityProgress,
    ModelLoaded,
    ModelLoading,
    Running,
    Tail,
    TasksCounted,
    WorkerEvent,
)
from fp8cli.core.processes.process_group import MARK, end, end_leftovers, start
from fp8cli.errors import CannotRun, Interrupted
from fp8cli.worker.protocol import Job

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "fp8cli/bundled/stories-llama"

PRELUDE = """\
import json, os, pathlib, signal, subprocess, sys, time
folder, rank = pathlib.Path(sys.argv[5]), int(sys.argv[6])
def tell(**event):
    with open(folder / f"events-{rank}.jsonl", "a") as stream:
        stream.write(json.dumps(event) + "\\n")
def result(**found):
    (folder / "result.json").write_text(json.dumps({"results": {}, "facts": {}} | found))
def note(*pids):
    with open(folder / "pids", "a") as stream:
        stream.write("".join(f"{pid}\\n" for pid in pids))
note(os.getpid())
"""

CHILD = "[sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)']"


def job(**settings: object) -> Job:
    fields: dict[str, object] = {
        "backend": "hf",
        "model_args": {"pretrained": str(MODEL), "dtype": "bfloat16", "max_length": 256, "add_bos_token": True},
        "tasks": ("lamb",),
        "include_paths": (),
        "include_defaults": False,
        "num_fewshot": None,
        "limit": 8,
        "sample": None,
        "sample_seed": 0,
        "apply_chat_template": False,
        "system_instruction": None,
        "fewshot_as_multiturn": False,
        "batch_size": 4,
        "device": "cpu",
        "gen_kwargs": None,
        "seeds": {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234},
        "confirm_unsafe_code": False,
        "fidelity": None,
    }
    return Job(**(fields | settings))  # type: ignore[arg-type]


def stand_in(folder: Path, program: str) -> Path:
    """An interpreter that, whatever it is told to run, runs this program with the worker's own arguments."""
    python = folder / "python"
    python.write_text(f"#!{sys.executable}\n{PRELUDE}{program}\n")
    python.chmod(0o755)
    return python


def run(folder: Path, program: str, *, stall_seconds: float = 30, **settings: object) -> list[WorkerEvent]:
    """Let stand-ins do a job and return the events; the result has to be there."""
    events: list[WorkerEvent] = []
    python = stand_in(folder, program)
    run_workers(job(**settings), folder / "work", python=python, notify=events.append, stall_seconds=stall_seconds)
    return events


def fail(folder: Path, program: str, *, stall_seconds: float = 30, **settings: object) -> WorkerFailed:
    with pytest.raises(WorkerFailed) as failure:
        run(folder, program, stall_seconds=stall_seconds, **settings)
    assert "the whole log: " in str(failure.value.hint)
    assert failure.value.log.is_file()
    assert not living(folder / "work")
    return failure.value


def living(work: Path) -> list[int]:
    """Of the processes that noted themselves, those that have not ended."""
    return [int(pid) for pid in (work / "pids").read_text().split() if is_alive(int(pid))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_events_are_told_and_the_result_comes_back_whatever_else_stands_among_the_events(tmp_path: Path) -> None:
    program = """\
tell(event="started", pid=1, python="x", versions={})
tell(event="tasks", tasks=[{"name": "a", "items": 3, "requests": 6}])
tell(event="tasks", tasks="none"); tell(event="loaded"); tell(event="answered", count="many"); tell(event="unheard of")
with open(folder / "events-0.jsonl", "ab") as stream:
    stream.write(b"no json\\n[1, 2\\n\\xff\\xfe\\n" + b"[" * 100_000 + b"\\n")
tell(event="loading", what="model")
tell(event="loaded", seconds=1.5, executed="fp8-kernel", max_length=9, bos=True)
tell(event="running", requests=6, known=2)
tell(event="answered", count=1); tell(event="answered", count=3)
tell(event="fidelity", done=1, total=2)
result(results={"a": 1})
tell(event="finished")
with open(folder / "events-0.jsonl", "a") as stream:
    stream.write('{"event": "failed", "kind": "other", "mess')
"""
    events: list[WorkerEvent] = []
    python = stand_in(tmp_path, program)
    result = run_workers(job(), tmp_path / "work", python=python, notify=events.append, stall_seconds=30)
    assert result == {"results": {"a": 1}, "facts": {}}
    counts = [event for event in events if isinstance(event, Answered)]
    assert sum(event.count for event in counts) == 4
    assert [event for event in events if event not in counts] == [
        TasksCounted(tasks=(CountedTask(name="a", items=3, requests=6),)),
        ModelLoading(),
        ModelLoaded(seconds=1.5, executed="fp8-kernel"),
        Running(requests=6, known=2),
        FidelityProgress(done=1, total=2),
    ]


def test_events_are_the_same_however_the_file_grows(tmp_path: Path) -> None:
    lines = b'{"event": "answered", "count": 1}\nrubbish\n{"event": "answered", "count": 2}\n{"event": "ans'
    for size in (1, 2, 7, 40, len(lines)):
        path = tmp_path / f"events-{size}"
        tail = Tail(path)
        events = [*tail.read()]
        for begin in range(0, len(lines), size):
            with path.open("ab") as stream:
                stream.write(lines[begin : begin + size])
            events += tail.read()
        assert events == [Answered(count=1), Answered(count=2)]


def test_two_workers_are_told_of_as_one(tmp_path: Path) -> None:
    program = """\
tell(event="tasks", tasks=[{"name": "a", "items": 3, "requests": 6}])
tell(event="loading", what="model")
tell(event="loaded", seconds=1.0 + rank, executed="fake-quant", max_length=9, bos=True)
if rank == 0:
    time.sleep(0.5)
tell(event="running", requests=3, known=rank)
tell(event="answered", count=2)
if rank == 0:
    result()
tell(event="finished")
"""
    events = run(tmp_path, program, world=2)
    counts = [event for event in events if isinstance(event, Answered)]
    assert sum(event.count for event in counts) == 4
    assert [event for event in events if event not in counts] == [
        TasksCounted(tasks=(CountedTask(name="a", items=3, requests=6),)),
        ModelLoading(),
        ModelLoaded(seconds=2.0, executed="fake-quant"),
        Running(requests=6, known=1),
    ]
    assert events.index(Running(requests=6, known=1)) < events.index(counts[0]), "how much there is comes first"


def test_one_worker_of_two_that_fails_ends_the_other(tmp_path: Path) -> None:
    program = """\
if rank == 0:
    time.sleep(600)
time.sleep(0.5)
print("ValueError: rank 1 is unhappy")
sys.exit(1)
"""
    failure = fail(tmp_path, program, world=2)
    assert failure.message == "ValueError: rank 1 is unhappy"
    assert failure.log.name == "log-1.txt"


def test_the_environment_reaches_the_worker_and_its_secrets_no_log(tmp_path: Path) -> None:
    token, password = "hf_" + "s" * 34, "correct horse"
    program = """\
for name in ("HF_TOKEN", "DB_PASSWORD", "BOTH", "OWN", "PYTHONUNBUFFERED", "PYTHONSAFEPATH"):
    print(name, os.environ.get(name))
(folder / "token").write_text(os.environ["HF_TOKEN"])
secrets = f"{os.environ['HF_TOKEN']}, {os.environ['DB_PASSWORD']}"
tell(event="failed", kind="other", message=f"ValueError: {secrets}", hint=None)
"""
    environ = {**os.environ, "HF_TOKEN": token, "DB_PASSWORD": password, "BOTH": "caller", "PYTHONUNBUFFERED": "yes"}
    with pytest.raises(WorkerFailed) as failure:
        run_workers(
            job(environment={"BOTH": "job", "OWN": "job"}),
            tmp_path / "work",
            python=stand_in(tmp_path, program),
            notify=print,
            stall_seconds=30,
            environ=environ,
        )
    assert failure.value.message == "ValueError: ***, ***"
    assert (tmp_path / "work/token").read_text() == token
    assert (tmp_path / "work/log-0.txt").read_text().splitlines()[1:] == [
        "HF_TOKEN ***",
        "DB_PASSWORD ***",
        "BOTH job",
        "OWN job",
        "PYTHONUNBUFFERED yes",
        "PYTHONSAFEPATH 1",
    ]
    assert token not in "".join(file.read_text() for file in (tmp_path / "work").glob("*.json"))


def test_a_worker_that_hangs_is_ended_after_the_time_it_was_given(tmp_path: Path) -> None:
    failure = fail(tmp_path, "tell(event='loading', what='model'); time.sleep(600)", stall_seconds=0.5)
    assert failure.message == "nothing was heard of the worker for 0.5 s, so it was ended"
    assert "--stall-timeout" in str(failure.hint)


def test_a_worker_whose_log_grows_is_not_taken_for_hung(tmp_path: Path) -> None:
    program = (
        "for _ in range(30):\n    print('still at it', flush=True); time.sleep(0.1)\nresult(); tell(event='finished')"
    )
    run(tmp_path, program, stall_seconds=2)


def test_a_worker_that_the_system_killed_ran_out_of_memory_most_likely(tmp_path: Path) -> None:
    failure = fail(tmp_path, "print('loading'); os.kill(os.getpid(), signal.SIGKILL)")
    assert failure.cause.kind == "memory"
    assert failure.message == "the system killed the worker, most often for memory (SIGKILL)"


def test_a_worker_that_runs_out_of_memory_says_so_in_its_log(tmp_path: Path) -> None:
    program = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\nbytearray(2**33)"
    failure = fail(tmp_path, program)
    assert (failure.cause.kind, failure.message) == ("memory", "the machine ran out of memory")


def test_a_crash_in_compiled_code_leaves_its_place_in_the_log(tmp_path: Path) -> None:
    failure = fail(tmp_path, "import ctypes\nctypes.string_at(0)")
    assert failure.message.startswith("compiled code crashed")
    assert "in string_at" in failure.log.read_text()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("sys.exit(0)", "the worker ended with exit code 0 before its work was done, and said nothing"),
        ("os._exit(3)", "the worker ended with exit code 3 before its work was done, and said nothing"),
        ("tell(event='finished')", "the worker's result cannot be read: No such file or directory"),
        (
            "(folder / 'result.json').write_text('{'); tell(event='finished')",
            "the worker's result cannot be read: it is no JSON",
        ),
        ("result(facts=[]); tell(event='finished')", "the worker's result lacks `results` or `facts`"),
        ("raise KeyError('acc')", "KeyError: 'acc'"),
    ],
)
def test_a_worker_that_dies_without_a_word_or_a_result_is_told_of(tmp_path: Path, program: str, message: str) -> None:
    assert fail(tmp_path, program).message == message


def test_what_a_worker_says_of_its_failure_counts_unless_its_log_knows_better(tmp_path: Path) -> None:
    log = "print('ValueError: Unknown quantization type, got x - supported types are')"
    own = "tell(event='failed', kind='task', message='there is no task `x`', hint='see lm-eval ls tasks')"
    for folder in ("own", "vague", "kind"):
        (tmp_path / folder).mkdir()
    failure = fail(tmp_path / "own", f"{log}; {own}; sys.exit(1)")
    assert (failure.cause.kind, failure.message) == ("task", "there is no task `x`")
    assert str(failure.hint).startswith("see lm-eval ls tasks; the whole log: ")
    vague = "tell(event='failed', kind='other', message='RuntimeError: Engine core initialization failed', hint=None)"
    failure = fail(tmp_path / "vague", f"{log}; {vague}; sys.exit(1)")
    assert failure.cause.kind == "scheme"
    unheard = "tell(event='failed', kind='sabotage', message='ValueError: x.', hint=7)"
    failure = fail(tmp_path / "kind", unheard)
    assert (failure.cause.kind, failure.message, failure.cause.hint) == ("other", "ValueError: x", None)


def test_an_interpreter_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    for python, reason in (
        (tmp_path / "none", "No such file or directory"),
        (MODEL / "config.json", "Permission denied"),
    ):
        with pytest.raises(CannotRun, match=rf"`{python}` cannot be run: {reason}") as refusal:
            run_workers(job(), tmp_path / "work", python=python, notify=print, stall_seconds=30)
        assert "--python" in str(refusal.value.hint)


def test_ctrl_c_ends_children_grandchildren_and_those_that_left_the_group(tmp_path: Path) -> None:
    program = f"""\
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note(subprocess.Popen({CHILD}).pid, subprocess.Popen({CHILD}, start_new_session=True).pid)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid(); note(os.getpid()); tell(event="loading", what="model"); time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
    started: list[int] = []

    def stop(_: WorkerEvent) -> None:
        started.extend(living(tmp_path / "work"))
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_workers(job(), tmp_path / "work", python=stand_in(tmp_path, program), notify=stop, stall_seconds=30)
    assert len(started) == 4
    assert not living(tmp_path / "work")


def test_a_group_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    polite = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('goodbye')))\n"
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    processes = []
    for name, program in (("polite", polite), ("stubborn", stubborn)):
        words = [sys.executable, "-c", f"{program}print('ready', flush=True)\ntime.sleep(600)"]
        log = tmp_path / name
        processes.append(start(words, environ=os.environ, folder=tmp_path, log=log))
        wait_until(lambda log=log: "ready" in log.read_text())  # type: ignore[misc]
    end(processes, tmp_path, grace_seconds=1)
    assert (tmp_path / "polite").read_text() == "ready\ngoodbye\n"
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]


def test_what_stands_in_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    other = start(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        environ=os.environ,
        folder=tmp_path / "a-and-more",
        log=tmp_path / "log",
    )
    try:
        end_leftovers(tmp_path / "a")
        assert other.poll() is None
    finally:
        end([other], tmp_path / "a-and-more")


def test_a_worker_that_finished_and_does_not_leave_is_shown_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_LEAVE_SECONDS", 0.3)
    run(tmp_path, "result(); tell(event='finished'); time.sleep(600)")
    assert not living(tmp_path / "work")


def test_a_run_begins_without_the_events_the_result_and_the_workers_of_an_earlier_one(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "answers-0.jsonl").write_text("kept\n")
    (work / "log-0.txt").write_text("ValueError: Unknown quantization type, got x - supported\n")
    (work / "result.json").write_text('{"results": {"old": 1}, "facts": {}}')
    (work / "events-0.jsonl").write_text('{"event": "finished"}\n')
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, MARK: str(work.resolve())}
    )
    failure = fail(tmp_path, "sys.exit(3)")
    assert failure.message == "the worker ended with exit code 3 before its work was done, and said nothing"
    assert left.wait(10) == -signal.SIGTERM
    assert (work / "answers-0.jsonl").read_text() == "kept\n"
    log = (work / "log-0.txt").read_text().splitlines()
    assert log[0].startswith("ValueError: Unknown")
    assert log[1].startswith("----- worker 0, 20")


def test_a_job_that_only_counts_has_no_result(tmp_path: Path) -> None:
    program = "tell(event='tasks', tasks=[{'name': 'a', 'items': 3, 'requests': 6}]); tell(event='finished')"
    events = run(tmp_path, program, stop_after="tasks")
    assert events == [TasksCounted(tasks=(CountedTask(name="a", items=3, requests=6),))]


# The real worker.


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    with (MODEL / "heldout.jsonl").open(encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for _, line in zip(range(400), stream, strict=False)]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    (folder / "lamb.yaml").write_text(
        "task: lamb\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}\n"
        "test_split: test\n"
        "output_type: loglikelihood\n"
        "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n"
        "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n"
        "metric_list:\n"
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "metadata: {version: 1.0}\n"
    )
    return folder


@pytest.mark.slow
def test_the_real_worker_does_its_job_and_says_how_it_goes(tasks: Path, tmp_path: Path) -> None:
    events: list[WorkerEvent] = []
    result = run_workers(
        job(include_paths=(str(tasks),)),
        tmp_path / "work",
        python=Path(sys.executable),
        notify=events.append,
        stall_seconds=300,
    )
    assert events[0] == TasksCounted(tasks=(CountedTask(name="lamb", items=8, requests=8),))
    assert Running(requests=8, known=0) in events
    assert sum(event.count for event in events if isinstance(event, Answered)) == 8
    assert json.loads(json.dumps(result))["results"]["results"]["lamb"]["sample_len"] == 8


PARENT = """\
import json, sys
from pathlib import Path
from fp8cli.core.evaluating.supervising import run_workers
from fp8cli.errors import Interrupted
from fp8cli.worker.protocol import Job
from tests.test_supervising import job
try:
    run_workers(
        job(include_paths=(sys.argv[2],), limit=None, batch_size=1),
        Path(sys.argv[1]),
        python=Path(sys.executable),
        notify=lambda event: print(type(event).__name__, flush=True),
        stall_seconds=300,
    )
except Interrupted:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_real_worker_ends_with_its_parent(tasks: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    work = tmp_path / "work"
    words = [sys.executable, "-c", PARENT, str(work), str(tasks)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line == "Answered\n":
                break
        started = json.loads((work / "events-0.jsonl").read_text().splitlines()[0])
        assert is_alive(started["pid"])
        parent.send_signal(number)
        assert parent.wait(30) == code
    wait_until(lambda: not is_alive(started["pid"]), 10)
    assert not (work / "result.json").exists()
    assert (work / "answers-0.jsonl").stat().st_size > 0


@pytest.mark.slow
def test_the_root_of_a_failure_of_vllm_s_engine_is_found_in_the_output_of_its_processes(
    tasks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    arguments = {
        "pretrained": str(MODEL),
        "dtype": "bfloat16",
        "max_model_len": 256,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.999,
    }
    with pytest.raises(WorkerFailed) as failure:
        run_workers(
            job(backend="vllm", model_args=arguments, device=None, include_paths=(str(tasks),)),
            tmp_path / "work",
            python=Path(sys.executable),
            notify=print,
            stall_seconds=300,
        )
    assert failure.value.cause.kind == "memory", failure.value.message
    assert "a share of 0.999" in failure.value.message
    assert "--gpu-memory" in str(failure.value.hint)
    assert "Engine core initialization failed" in failure.value.log.read_text()
