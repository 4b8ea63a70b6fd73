"""A signal that comes as the main thread falls asleep is heard all the same."""

import subprocess
import sys

import pytest

ASLEEP = """
import os, signal, sys, threading, time
from fp8cli.cli.waking import wake_on_signals

if sys.argv[2] == "woken":
    wake_on_signals()

def send():
    time.sleep(0.2)
    # Handled by this thread in C, and so it interrupts no wait of the other.
    signal.pthread_kill(threading.get_ident(), getattr(signal, sys.argv[1]))
    time.sleep(4)
    print("asleep", flush=True)
    os._exit(1)

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
lock = threading.Lock()
lock.acquire()
threading.Thread(target=send, daemon=True).start()
try:
    lock.acquire()
except KeyboardInterrupt:
    print("awake", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "how", "said"),
    [("SIGINT", "woken", "awake"), ("SIGTERM", "woken", "awake"), ("SIGINT", "not", "asleep")],
)
def test_a_signal_that_comes_as_the_main_thread_falls_asleep_wakes_it(number: str, how: str, said: str) -> None:
    ran = subprocess.run([sys.executable, "-c", ASLEEP, number, how], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == (f"{said}\n", "")
