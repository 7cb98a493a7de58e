"""What the tiny Cadrille reads with: tokenizer, processor, and the sizes of its vision tower."""

import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from processing_dsr import CadrilleProcessor

from .cad_tokens import CORPUS, PIECES
from .tokenizer import write_tokenizer

VIEW_PIXELS = 112**2  # at least: two views are read as they are, 280 × 140 pixels, 50 tokens
VISION = {
    "depth": 2,
    "embed_dim": 128,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 14,
    "in_channels": 3,
    "initializer_range": 0.06,
}


def cad_tokenizer():
    """A `Qwen2Tokenizer` with one token for each number and phrase of `cad_tokens`."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), CORPUS, PIECES)
        return AutoTokenizer.from_pretrained(folder)


def cadrille_processor(tokenizer, **options) -> CadrilleProcessor:
    from transformers import Qwen2VLImageProcessor

    options = {"view_pixels": VIEW_PIXELS, "view_coordinates": True, **options}
    return CadrilleProcessor(Qwen2VLImageProcessor(), tokenizer, **options)
