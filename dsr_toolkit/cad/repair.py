"""A program that failed, shown to the model together with the error, so that it may write a better one."""

from __future__ import annotations

import torch

from .answers import Execution

MAX_SHOWN = 1500  # characters of a failed program that are shown


def repair_inputs(processor, model_type: str, samples: dict, program: str, execution: Execution, seed: int = 0) -> dict:
    """
    Inputs of the model for one sample whose program failed.

    Cadrille reads the program and the error as the text that goes with its points or views; CAD-Recode, which reads no
    question, finds them as a comment before the program that it goes on to write.

    Args:
        samples: what the processor was given for the first programs: `meshes`, `point_clouds`, `images` or `text`.
    """
    error = f"{execution.code}: {execution.message}".rstrip(": ")
    shown = program.strip()[:MAX_SHOWN]
    if model_type == "cadrille":
        asked = samples.get("text") or processor.prompt
        question = f"{asked}\n\nThis program fails:\n{shown}\nError: {error}\nWrite a program that does not fail."
        return dict(processor(**{**samples, "text": question}, seed=seed))
    inputs = dict(processor(**samples, seed=seed))
    comment = "".join(f"# {line}\n" for line in ("This program fails:", *shown.splitlines(), f"Error: {error}"))
    added = torch.tensor([processor.tokenizer(comment, add_special_tokens=False)["input_ids"]]).long()
    for name, filling in (("input_ids", None), ("attention_mask", 1), ("point_token_mask", 0)):
        new = added if filling is None else torch.full_like(added, filling)
        inputs[name] = torch.cat([inputs[name], new.to(inputs[name].dtype)], dim=1)
    return inputs
