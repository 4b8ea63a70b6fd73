"""Whether a node may work: judged by this machine from what the node says of itself, in one sentence if it may not.

The bytes must come out as if this machine had made them, so the code must be the same; and source and output must be
the very folders that this machine sees, not others that happen to have their names. What is slow is not unfit.
"""

from collections.abc import Mapping

from fp8cli.core.clustering.messages import NodeFacts

KNOWN_SLOW = "has no compiled kernel, so torch does the arithmetic, which takes about three times as long"


def why_unfit(facts: NodeFacts, *, version: str, code: str, wrote: bool, needed_bytes: int) -> str | None:
    """Say why a node gets no work; None: it may have some.

    version, code: of fp8 here. wrote: whether what the node says it wrote to the shared folder is seen here.
    needed_bytes: of disk, for the output.
    """
    if facts.problem is not None:
        return facts.problem
    if facts.fp8 != version:
        return f"has fp8 {facts.fp8}, and this machine has {version}"
    if facts.code != code:
        return f"has another fp8 {version}: its code is not the same"
    if facts.source_problem is not None:
        return facts.source_problem
    if facts.folder_problem is not None:
        return facts.folder_problem
    if not wrote:
        return "writes to another folder than the one this machine sees"
    if facts.disk_free_bytes is not None and facts.disk_free_bytes < needed_bytes:
        return f"sees {facts.disk_free_bytes / 10**9:,.2f} GB of free disk, of {needed_bytes / 10**9:,.2f} needed"
    return None


def odd_ones(nodes: Mapping[str, NodeFacts]) -> dict[str, tuple[str, ...]]:
    """Return what each node of several, by name, has otherwise than most of them; only those that differ are named."""
    said: dict[str, list[str]] = {}
    answered = {name: facts for name, facts in nodes.items() if facts.problem is None}
    for what in ("python", "fp8", "code", "ray", "torch", "kernel", "gpus"):
        values = [getattr(facts, what) for facts in answered.values()]
        if len(set(values)) < 2:
            continue
        usual = max(values, key=values.count)
        for name, facts in answered.items():
            value = getattr(facts, what)
            if value != usual:
                said.setdefault(name, []).append(f"{what} is {_text(value)}, elsewhere {_text(usual)}")
    return {name: tuple(words) for name, words in said.items()}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
