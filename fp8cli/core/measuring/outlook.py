"""What a measurement will need of main memory, said and judged before a model is loaded.

    1 GB + weights + weights that are rounded + tokens of a batch · vocabulary · 12

The first term is Python with torch and transformers. Weights that are rounded lie beside what they were, so that the
model can be taken back; where llm-compressor prepares weights, copies of the whole model do, and with them the Hessians
that GPTQ has of one layer. The last is what a batch comes to at the output: logits, and their logarithms in float32
before and after the softmax; it has 512 tokens, or one longer text. On a GPU the model is in main memory only while it
is loaded, which is the smaller sum.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.doctor.environment import Check, gib
from fp8cli.core.machine.probes import ROOT, read_memory
from fp8cli.core.quantizing.hessians import largest_hessians
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.safetensors import DTYPES

PROGRAM_BYTES: Final = 10**9
BATCH_TOKENS: Final = 512
_OUTPUT_BYTES: Final = 12
_TABLES: Final = frozenset({"embedding", "output head"})


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory of a measurement, estimated in bytes."""

    least: int
    """To load the model: less cannot do."""
    most: int


def estimate_memory(plan: Plan, max_seq_length: int, *, copies: int = 0, rounded: int = 1) -> Memory:
    """Estimate the main memory that measuring needs, see above.

    plan: of any scheme that quantizes weights. copies: of the model, which llm-compressor prepares. rounded: how many
    times the weights that are rounded lie beside all that.
    """
    kept = [tensor for tensor in plan.tensors if tensor.action != "drop"]
    sizes = {tensor.name: tensor.source.elements * DTYPES[tensor.compute_dtype].bits // 8 for tensor in kept}
    beside = rounded * sum(sizes[tensor.name] for tensor in kept if tensor.action == "quantize")
    if copies:
        beside += copies * sum(sizes.values()) + largest_hessians(plan)
    vocabulary = max((tensor.source.shape[0] for tensor in kept if tensor.role in _TABLES), default=0)
    least = PROGRAM_BYTES + sum(sizes.values())
    return Memory(least=least, most=least + beside + max(max_seq_length, BATCH_TOKENS) * vocabulary * _OUTPUT_BYTES)


def check_memory(memory: Memory, root: Path = ROOT) -> Check:
    """Check main memory against the estimate: too small for the weights fails, too full just now is a warning."""
    seen = read_memory(root)
    name, wanted = "memory", f"about {gib(memory.most)} to load the model and to round it"
    whose = "this machine" if seen.group is None else f"the control group `{seen.group}`"
    found = f"{gib(seen.available_bytes)} available of the {gib(seen.total_bytes)} of {whose}"
    if seen.total_bytes < memory.least:
        fix = "measure where there is more memory; what a scheme does to weights alone, fp8 inspect --against tells"
        return Check(name=name, status="failed", found=found, wanted=wanted, fix=fix)
    if seen.available_bytes < memory.most:
        fix = "end other programs, or take shorter texts: --max-seq-length"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    return Check(name=name, status="passed", found=found, wanted=wanted)
