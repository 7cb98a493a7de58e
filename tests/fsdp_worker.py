"""Two-process half of `tests/model_checks.py`: one training step of an exported model under torch's `fully_shard`
(FSDP2) over gloo, then a full save.

accelerate never shards on the CPU (its launches are DistributedDataParallel there), so sharding is done by hand. Run
with a job file; it forks into the two. Imports nothing of the library.
"""

import json
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import transformers
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

JOB = json.loads(Path(sys.argv[1]).read_text())
WORK = Path(JOB["work"])


def main(rank: int):
    meeting = f"file://{WORK / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, timedelta(minutes=10), world_size=2, rank=rank)
    auto = getattr(transformers, JOB["auto_class"])
    model = auto.from_pretrained(
        WORK / "repository", trust_remote_code=True, dtype=torch.float64
    ).eval()  # no dropout: one process repeats it
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    # torch shards no single numbers (the map head has some): they stay whole, and their gradients are averaged by hand.
    # In the model's order: a set has another one in each process, and would average one number with another.
    single = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    whole = set(single)
    for module in model.modules():
        if type(module).__name__ in JOB["layers"]:
            fully_shard(module, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    sharded = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    assert len(sharded) == len(list(model.parameters())) - len(whole)
    assert sum(p.to_local().numel() for p in sharded) < 0.75 * sum(p.numel() for p in sharded)

    example = torch.load(WORK / "inputs.pt", weights_only=True)["training"]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=JOB["learning_rate"])
    loss = model(**example).loss
    loss.backward()
    for parameter in single:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()
    optimizer.step()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() == 0:
        model.save_pretrained(WORK / "trained", state_dict=state)
        (WORK / "loss.json").write_text(json.dumps(loss.item()))
    torch.distributed.barrier()  # no rank leaves while another still writes
    torch.distributed.destroy_process_group()


# Two processes that have read the libraries once, and nothing but read them: no thread is lost in a fork.
torch.set_num_threads(1)
other = os.fork()
status = 0
try:
    main(0 if other else 1)
except BaseException:
    traceback.print_exc()
    status = 1
    if other:
        os.kill(other, signal.SIGKILL)
if other:
    status |= os.waitpid(other, 0)[1] != 0
# The work is done and flushed. A regular exit lets static destructors run beside gloo's threads, and torch then aborts
# about once in a hundred runs ("terminate called without an active exception").
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
