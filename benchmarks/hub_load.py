"""`from_pretrained` of an assembled repository, code and all, against that of a plain base model of the same size.

Baseline: Qwen2.5-VL and Qwen2 as transformers has them, of as many bytes, loaded from a folder of their own. On a CPU
the weights go from bfloat16 to float32, on a GPU to its memory, so that both sides read all of them. `time_mapped` is
the case in which none is read, because bfloat16 stays a mapped file: what remains is the cost of modules and tensor
names, of which DSR has more than a plain model of as many bytes, and there is no target. What somebody waits for is
`time_first_token`: the same load and a prompt of 32 words, which reads the weights of the language model.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
)

from benchmarks.convert_stream import write_random_shards
from benchmarks.harness import ROOT, alternate, assert_agreement, row
from convert_weights import assemble, convert
from tests.convert_weights.upstream_layouts import QWEN_7B, dsr_layout, qwen_layout

NAME = "hub.load"
TARGET = 1 / 1.2
ROUNDS = 7
# Qwen2.5-VL with the language model of the 3B size, four layers of it, and a quarter of the vision tower.
TEXT = {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2}
VISION = {**QWEN_7B["vision_config"], "depth": 8, "fullatt_block_indexes": [7], "out_hidden_size": 2048}
DSR = {**QWEN_7B, **TEXT, "num_hidden_layers": 4, "vision_config": VISION}
# Qwen2-1.5B, the base of CAD-Recode.
QWEN2 = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "num_hidden_layers": 28,
    "vocab_size": 151936,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def run() -> list[dict]:
    """Measured in a process where this library's classes are not registered: the repository's code runs."""
    with tempfile.TemporaryDirectory(prefix="hub-load-") as work:
        make_repository(Path(work))
        code = "import sys; from benchmarks.hub_load import measure_all; measure_all(sys.argv[1])"
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{work}/modules"}
        subprocess.run([sys.executable, "-c", code, work], cwd=ROOT, env=offline, check=True)
        return json.loads((Path(work) / "rows.json").read_text())


def measure_all(folder: str) -> None:
    """Child's side of `run`; leaves its rows in `rows.json`."""
    work = Path(folder)
    repository = work / "repository"
    read = {"dtype": "auto", "device_map": "cuda"} if torch.cuda.is_available() else {"dtype": "float32"}

    def vision_language(**how):
        return (
            lambda: Qwen2_5_VLForConditionalGeneration.from_pretrained(work / "plain", **how),
            lambda: AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True, **how),
            "model.language_model.layers.0.self_attn.q_proj.weight",
        )

    def in_subfolder(**how):
        return (
            lambda: Qwen2ForCausalLM.from_pretrained(work / "qwen2", **how),
            lambda: AutoModelForCausalLM.from_pretrained(
                repository, subfolder="cad_recode", trust_remote_code=True, **how
            ),
            "model.layers.0.self_attn.q_proj.weight",
        )

    rows = [measure("time", *vision_language(**read)), measure("time_subfolder", *in_subfolder(**read))]
    plain, ours, shared = vision_language(dtype="auto")
    rows.append(measure("time_mapped", plain, ours, shared, None))
    answering = [lambda load=load: first_token(load().eval()) for load in (plain, ours)]
    rows.append(row(NAME, "time_first_token", *alternate(*answering, rounds=ROUNDS), TARGET))
    (work / "rows.json").write_text(json.dumps(rows))


def first_token(model: PreTrainedModel) -> torch.Tensor:
    """Logits `[1, vocabulary]` behind a prompt without a picture."""
    ids = torch.arange(100, 132, device=model.device).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]


def measure(metric: str, baseline, ours, shared: str, target: float | None = TARGET) -> dict:
    plain, model = baseline(), ours()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert abs(nbytes(model) / nbytes(plain) - 1) < 0.01, (nbytes(model), nbytes(plain))
    assert_agreement(dict(model.named_parameters())[find(model, shared)], dict(plain.named_parameters())[shared], 0.0)
    del plain, model
    return row(NAME, metric, *alternate(baseline, ours, rounds=ROUNDS), target)


def find(model: PreTrainedModel, name: str) -> str:
    """The parameter of that name, wherever the architecture keeps its language model."""
    end = name.split("layers.", 1)[1]
    return next(key for key, _ in model.named_parameters() if key.endswith(f"layers.{end}") and "geometry" not in key)


def nbytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def make_repository(work: Path) -> Path:
    """DSR at the root and CAD-Recode in a subfolder, and their plain counterparts in `plain` and `qwen2`."""
    layout = dsr_layout(DSR)
    write(work / "dsr_source", layout, DSR)
    config = same_size(DSR, 2 * elements(layout))
    write(work / "plain", qwen_layout(config), {**config, "architectures": ["Qwen2_5_VLForConditionalGeneration"]})
    write(work / "qwen2", qwen2_layout(QWEN2), QWEN2)
    convert("dsr", {"dsr": work / "dsr_source"}, work / "dsr", progress=False)
    shutil.rmtree(work / "dsr_source")
    convert("cad_recode", {"qwen2": work / "qwen2"}, work / "cad_recode", progress=False)
    models = {"dsr": work / "dsr", "cad_recode": work / "cad_recode"}
    assemble(models, work / "repository", link=True, progress=False)
    return work / "repository"


def same_size(config: dict, wanted: int) -> dict:
    """The plain model of `wanted` bytes: more layers, and words for the rest."""
    config = dict(config)
    while 2 * elements(qwen_layout({**config, "num_hidden_layers": config["num_hidden_layers"] + 1})) <= wanted:
        config["num_hidden_layers"] += 1
    rest = wanted - 2 * elements(qwen_layout(config))
    config["vocab_size"] += rest // (4 * config["hidden_size"])  # a row of the embedding and one of the head
    return config


def elements(layout: dict) -> int:
    return sum(map(math.prod, layout.values()))


def qwen2_layout(config: dict) -> dict:
    """Qwen2's own names: those of the language model of Qwen2.5-VL."""
    full = {**config, "vision_config": {**VISION, "depth": 0}}
    return {key: shape for key, shape in qwen_layout(full).items() if not key.startswith("visual.")}


def write(folder: Path, layout: dict, config: dict) -> None:
    write_random_shards(folder, layout)
    index = folder / "model.safetensors.index.json"
    content = {"metadata": {"total_size": 2 * elements(layout)}, **json.loads(index.read_text())}
    index.write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps(config))
