"""Anonymous memory at its peak, page cache not counted, does not grow with the checkpoint."""

import functools
import json
import math
import shutil

import pytest

from benchmarks.harness import peak_memory
from tests.convert_weights.upstream_layouts import (
    QWEN_7B,
    dsr_layout,
    encoder_layout,
    qwen_layout,
    write_sparse_shards,
)

# Sparse bfloat16 checkpoints of 0.2 GB; half of the 0.6 GB of float32 that comes out is new.
MEDIUM = {
    **QWEN_7B,
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "vocab_size": 16384,
    "vision_config": {**QWEN_7B["vision_config"], "depth": 1, "out_hidden_size": 1024},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_ENCODER = {"width": 512, "layers": 2, "grid": 37}


def prepare(sources: dict[str, str], output: str, dtype: str | None):
    """In the measured process: everything imported, nothing opened."""
    import modeling_dsr.modeling_dsr  # noqa: F401
    from convert_weights import convert

    return functools.partial(convert, "dsr", sources, output, dtype=dtype, progress=False)


def measure(sources, output, dtype=None):
    return peak_memory(
        "tests.convert_weights.test_out_of_core:prepare", {k: str(v) for k, v in sources.items()}, str(output), dtype
    )


@pytest.fixture
def write(tmp_path):
    def write_source(name, layout, config=None):
        write_sparse_shards(tmp_path / name, layout, 2 * 10**9)
        if config:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    return write_source


@pytest.mark.slow
def test_loading_splitting_casting_and_initialising_take_a_few_pieces(write, tmp_path):
    """Pieces of 16 MB are what passes through memory."""
    encoder = encoder_layout("encoder.", **SMALL_ENCODER)
    sources = {"qwen": write("qwen", qwen_layout(MEDIUM), MEDIUM), "pi3": write("pi3", encoder)}
    peak = measure(sources, tmp_path / "out", "float32")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    shutil.rmtree(tmp_path / "out")
    assert written > 0.5e9
    assert peak < 120e6


@pytest.mark.parametrize(
    ("layers", "size"), [pytest.param(1, 5e9, marks=pytest.mark.slow), pytest.param(32, 20e9, marks=pytest.mark.long)]
)
def test_many_gigabytes(layers, size, write, tmp_path):
    config = {**QWEN_7B, "num_hidden_layers": layers}
    layout = dsr_layout(config)
    if shutil.disk_usage(tmp_path).free < 1.1 * size:
        pytest.skip(f"needs {1.1 * size / 1e9:.0f} GB of disk")
    peak = measure({"dsr": write("dsr", layout, config)}, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    shutil.rmtree(tmp_path / "out")
    assert written > size
    assert peak < 1e9 + 2 * max(map(math.prod, layout.values()))
