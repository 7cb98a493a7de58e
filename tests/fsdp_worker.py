"""Two-process half of `tests/model_checks.py`: one sharded training step of an exported model, then a full save.

Run under `torch.distributed.run` with a job file. Imports nothing of the library.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers

JOB = json.loads(Path(sys.argv[1]).read_text())
WORK = Path(JOB["work"])


class Step(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        result = model(**inputs)
        loss = getattr(result, "loss", None)
        if loss is None:
            values = [value for value in result.values() if isinstance(value, torch.Tensor) and value.requires_grad]
            loss = sum(value.float().square().mean() for value in values)
        return (loss, result) if return_outputs else loss


def main():
    arguments = transformers.TrainingArguments(
        output_dir=str(WORK / "training"), max_steps=1, per_device_train_batch_size=1, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
        ddp_backend="gloo", fsdp="full_shard auto_wrap",
        fsdp_config={
            "version": 2, "transformer_layer_cls_to_wrap": JOB["layers"], "state_dict_type": "FULL_STATE_DICT",
            "reshard_after_forward": True, "cpu_ram_efficient_loading": False,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    auto = getattr(transformers, JOB["auto_class"])
    model = auto.from_pretrained(WORK / "repository", trust_remote_code=True)
    example = torch.load(WORK / "inputs.pt", weights_only=True)["training"]
    step = Step(model=model, args=arguments, train_dataset=[example] * 2, data_collator=lambda items: items[0])
    step.train()
    step.save_model(str(WORK / "trained"))
    torch.distributed.barrier()  # no rank leaves while another still writes
    torch.distributed.destroy_process_group()


main()
# The work is done and flushed. A regular exit lets static destructors run beside gloo's threads, and torch then aborts
# about once in a hundred runs ("terminate called without an active exception").
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
