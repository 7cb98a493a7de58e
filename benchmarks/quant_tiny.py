"""Weights in 8 and 4 bits (torchao, bitsandbytes) on the trained tiny CAD models: memory, speed, the same tokens.

Quantisers go through transformers' own integrations. Which of them run here is seen when they are tried: one that does
not is told, and has no rows. Greedy programs of eight parts, against those of float32 weights.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

from benchmarks.cad_models import tiny, write
from benchmarks.harness import alternate, row
from dsr_toolkit.tiny import shipped
from dsr_toolkit.training.run import auto_class

NAME = "quant.tiny"
KINDS = ("cad_recode", "cadrille")
PARTS, TOKENS = 8, 64


def ways() -> dict:
    """Quantisation configs by name, of the libraries that are installed."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    found = {}
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

        found["int8, torchao"] = lambda: TorchAoConfig(Int8WeightOnlyConfig())
        found["int4, torchao"] = lambda: TorchAoConfig(Int4WeightOnlyConfig(group_size=32))
    if importlib.util.find_spec("bitsandbytes"):
        found["int8, bitsandbytes"] = lambda: BitsAndBytesConfig(load_in_8bit=True)
        found["nf4, bitsandbytes"] = lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return found


def stored(tensor: torch.Tensor) -> int:
    """Bytes; of a tensor that wraps others, theirs."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def weights_of(model) -> int:
    extra = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # bitsandbytes keeps scales beside a weight
        extra += sum(stored(part) for part in (getattr(state, "absmax", None), getattr(parameter, "SCB", None))
                     if part is not None)  # fmt: skip
    return extra + sum(stored(tensor) for tensor in (*model.parameters(), *model.buffers()))


def agreement(found: torch.Tensor, expected: torch.Tensor, ends: list[int]) -> float:
    """Share of the tokens of `expected` `[B, n]`, up to the first of `ends` in each row, that `found` has at their
    place."""
    ended = torch.isin(expected, torch.tensor(ends)).int()
    written = ended.cumsum(1) - ended == 0  # what pads shorter rows agrees by itself
    found = torch.nn.functional.pad(found, (0, expected.shape[1]), value=-1)[:, : expected.shape[1]]
    return float((found == expected)[written].float().mean())


def of_kind(kind: str) -> list[dict]:
    whole, _, (inputs,) = tiny(kind, PARTS, together=True)
    plain = lambda: write(whole, inputs, max_new_tokens=TOKENS)  # noqa: E731
    expected, rows, ends = plain(), [], whole.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    for name, config in ways().items():
        try:
            model = auto_class(whole.config).from_pretrained(
                shipped.FOLDER / kind, quantization_config=config(), dtype=torch.float32
            )
            small = lambda model=model: write(model.eval(), inputs, max_new_tokens=TOKENS)  # noqa: E731
            found = small()
        except (ImportError, NotImplementedError, RuntimeError, ValueError, AssertionError, TypeError) as error:
            print(f"{kind}, {name}: does not run here ({type(error).__name__}: {str(error)[:200]})", file=sys.stderr)
            continue
        rows += [
            row(NAME, f"memory of weights, {kind}, {name}", weights_of(whole), weights_of(model), None),
            row(NAME, f"time, {kind}, {name}", *alternate(plain, small), None),
            row(NAME, f"agreement, {kind}, {name}", agreement(found, expected, ends), 1.0, None),
        ]
    return rows


def run() -> list[dict]:
    if not ways():
        print("quant.tiny: no quantiser is installed; `pip install torchao bitsandbytes`, or one.", file=sys.stderr)
    return [line for kind in KINDS for line in of_kind(kind)]
