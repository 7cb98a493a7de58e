"""FrozenQwenSAM: the checks common to all models."""

import pytest
import torch

from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel
from tests.model_checks import ModelChecks
from tests.modeling_dsr.frozen_qwen_sam_samples import collate, sample, tiny_config

# Images of two grids and three sizes; captions of one and of several phrases.
ROWS = (
    dict(grid=(4, 6), phrases=(3, 2), size=(30, 40)),
    dict(grid=(6, 4), phrases=(1, 4, 2), size=(50, 20), separate=True),
    dict(grid=(4, 6), phrases=(2,), size=(64, 64)),
)


class TestFrozenQwenSAM(ModelChecks):
    model_classes = (FrozenQwenSAMModel,)
    padding_sides = ("right", "left")
    has_attentions = False  # whole attention matrices are what this model avoids
    test_hidden_states_are_recorded = None  # likewise: only the rows of phrases exist
    # Between two images of one grid the U-Net may sum in another order, and its norms amplify the difference.
    batch_atol = 5e-4
    attention_atol = 2e-4
    # With one mask per phrase, the decoder's other three mask tokens get exact zeros.
    parameters_without_gradient = (r"sam\.mask_decoder\.output_hypernetworks_mlps\.[123]\..+",)
    lora_targets = r"sam\.mask_decoder\..*(q_proj|v_proj)"

    def tiny_config(self):
        # Chunks begin at other addresses in every process, where equal sums may round otherwise.
        return tiny_config(decoder_chunk_size=0)

    def inputs(self, batch, padding_side="right"):
        return collate([sample(i, **ROWS[i]) for i in range(batch)], padding_side, labels=False)

    def training_inputs(self, batch):
        return collate([sample(i, **ROWS[i]) for i in range(batch)])

    def per_sample(self, outputs, inputs, batch):
        names = ("mask_attentions", "pred_masks", "prompt_masks", "boxes", "sam_pred_masks", "iou_scores")
        samples = [{name: outputs[name][i] for name in names} for i in range(batch)]
        for one, embeds in zip(samples, outputs.text_embeds):
            one |= {f"text_embeds.{number}": tokens for number, tokens in enumerate(embeds)}
        return samples

    def compile_pieces(self, model, inputs):
        return {"mask head": (model.mask_head, (torch.rand(2, 8, 2, 3),), {})}

    def processor(self):
        return self.store.setdefault("processor", self._processor())

    def _processor(self):
        import tempfile
        from pathlib import Path

        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        from dsr_toolkit.tiny.tokenizer import write_tokenizer
        from processing_dsr import FrozenQwenSAMProcessor

        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return FrozenQwenSAMProcessor(Qwen2VLImageProcessorPil(), tokenizer, tokenizer.chat_template, sam_image_size=64)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_other_qwen_families_run_and_come_back(kind, tmp_path):
    torch.manual_seed(0)
    model = FrozenQwenSAMModel(tiny_config(kind)).eval()
    inputs = collate([sample(i, **ROWS[i]) for i in range(2)])
    model.save_pretrained(tmp_path)
    again, info = FrozenQwenSAMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "vlm",
        "sam",
        "mask_head",
        "text_proj",
        "text_layer_weights",
    }
    with torch.no_grad():
        expected, found = model(**inputs), again.eval()(**inputs)
    torch.testing.assert_close(found.sam_pred_masks[1], expected.sam_pred_masks[1], atol=1e-6, rtol=1e-5)
