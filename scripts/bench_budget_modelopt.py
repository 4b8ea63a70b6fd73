"""ModelOpt's choice for bench_budget.py, under an interpreter that has it: MODEL TEXTS EFFECTIVE_BITS… → JSON.

MODEL: a folder. TEXTS: a JSON file of token ids, [[1, 5, …], …]. For each number of effective bits its `auto_quantize`
searches {FP8_DEFAULT_CFG, no quantization} for every Linear but the output head, with its own scores (by gradients,
the default), on all texts. Written to standard output: the names of the Linears that it leaves in 16 bits.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from transformers import AutoModelForCausalLM


def kept_by_modelopt(folder: str, texts: list[torch.Tensor], effective_bits: float) -> list[str]:
    """Return the Linears that `auto_quantize` leaves alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def forward_step(model: Any, ids: torch.Tensor) -> Any:
        return model(input_ids=ids, use_cache=False)

    def loss_func(output: Any, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), ids[0, 1:])

    model, _ = mtq.auto_quantize(
        model,
        constraints={"effective_bits": effective_bits},
        quantization_formats=[mtq.FP8_DEFAULT_CFG],
        data_loader=texts,
        forward_step=forward_step,
        loss_func=loss_func,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(texts),
        num_score_steps=len(texts),
    )
    return [name for name, module in model.named_modules() if _is_left(name, module)]


def _is_left(name: str, module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) and name != "lm_head" and not _is_quantized(module)


def _is_quantized(module: Any) -> bool:
    return bool(module.weight_quantizer.is_enabled)


def main() -> None:
    """Answer for every number of effective bits."""
    folder, texts_file, *bits = sys.argv[1:]
    texts = [torch.tensor([ids]) for ids in json.loads(Path(texts_file).read_text("utf-8"))]
    with contextlib.redirect_stdout(sys.stderr):
        found = {each: kept_by_modelopt(folder, texts, float(each)) for each in bits}
    print(json.dumps(found))


main()
