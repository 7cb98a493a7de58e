"""One optimizer step of a tiny model by transformers' Trainer, alone or as one of several processes:
`python -m torch.distributed.run --nproc-per-node=2 -m tests.dsr_toolkit.training.step FOLDER NAME …`, which leaves a
folder `plain` and a folder `checkpointing`"""

import json
import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from .models import CASES, COUNT, build


def step(name: str, folder: Path, batch: int, accumulation: int = 1, **settings) -> tuple[float, dict]:
    """The logged loss, and what one step of plain gradient descent added to each parameter."""
    model = build(name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=1.0,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        **settings,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=list(range(COUNT)),
        data_collator=lambda numbers: CASES[name].batch(numbers),
    )
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return loss, {key: value.detach() - before[key] for key, value in model.named_parameters()}


def main(folder: str, names: list[str]) -> None:
    for way in ("plain", "checkpointing"):
        output, found = Path(folder) / way, {}
        output.mkdir(exist_ok=True)
        for name in names:
            loss, moved = step(name, output / name, batch=2, gradient_checkpointing=way == "checkpointing")
            found[name] = loss
            if torch.distributed.get_rank() == 0:
                torch.save(moved, output / f"{name}.pt")
        if torch.distributed.get_rank() == 0:
            (output / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
