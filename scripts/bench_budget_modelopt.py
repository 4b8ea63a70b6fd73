"""ModelOpt's choice for bench_budget.py, under an interpreter that has it: MODEL TEXTS METHOD BITS… → JSON.

MODEL: a folder. TEXTS: a JSON file of token ids, [[1, 5, …], …]. METHOD: how ModelOpt scores, `gradient` (its default)
or `kl_div`. Its `auto_quantize` searches {FP8_DEFAULT_CFG, no quantization} for every Linear but the output head, on
all texts, and its own solver is asked again for each number of effective bits. Written to standard output: for each,
the names of the Linears that it leaves in 16 bits.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from transformers import AutoModelForCausalLM


def search(folder: str, texts: list[torch.Tensor], method: str, effective_bits: float) -> tuple[list[str], Any]:
    """Return the Linears that may be quantized, and the state of a search."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    linears = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]

    def forward_step(model: Any, ids: torch.Tensor) -> Any:
        output = model(input_ids=ids, use_cache=False)
        return output.logits if method == "kl_div" else output

    def loss_func(output: Any, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), ids[0, 1:])

    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": effective_bits},
        quantization_formats=[mtq.FP8_DEFAULT_CFG],
        data_loader=texts,
        forward_step=forward_step,
        loss_func=loss_func,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(texts),
        num_score_steps=len(texts),
        method=method,
    )
    return linears, state


def main() -> None:
    """Answer for every number of effective bits."""
    folder, texts_file, method, *bits = sys.argv[1:]
    texts = [torch.tensor([ids]) for ids in json.loads(Path(texts_file).read_text("utf-8"))]
    found = {}
    with contextlib.redirect_stdout(sys.stderr):
        linears, state = search(folder, texts, method, float(bits[0]))
        for each in bits:
            config = mtq.get_auto_quantize_config(state, {"effective_bits": float(each)})
            quantized = {entry["quantizer_name"] for entry in config["quant_cfg"] if entry.get("enable")}
            found[each] = [name for name in linears if f"{name}.weight_quantizer" not in quantized]
    print(json.dumps(found))


main()
