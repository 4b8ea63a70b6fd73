"""How a checkpoint was sent to another place, in a sentence."""

from fp8cli.core.delivering.sending import Delivered
from fp8cli.render.units import count, size


def sentence(delivered: Delivered) -> str:
    """Say what is there now, and what took the time."""
    bound = f"{delivered.bound} took the time, {delivered.waited_seconds:.1f} s were spent waiting for sending alone"
    return f"{what(delivered)} · {bound}"


def what(delivered: Delivered) -> str:
    """Say what is there now."""
    commit = f" as commit {delivered.commit[:12]}" if delivered.commit else ""
    resumed = f", {size(delivered.bytes_resumed)} of them by an earlier run" if delivered.bytes_resumed else ""
    sent = f"{count(delivered.files)} files, {size(delivered.bytes_sent)}{resumed}"
    return f"sent to {delivered.address}{commit}: {sent}"
