"""
Every model, tiny, with four training samples of unequal weight: answers of different length, holes of different size.
"""

from dataclasses import dataclass
from typing import Callable

import torch
from transformers import PreTrainedModel, set_seed

from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel
from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration
from tests.modeling_dsr import (
    cad_samples,
    dsr_samples,
    frozen_qwen_sam_samples,
    pi3_samples,
    scene_samples,
    test_modeling_page4d,
)

COUNT = 4


@dataclass
class Case:
    """How to build a model, and a batch of the samples of some numbers (0 … 3)."""

    model: Callable[[], PreTrainedModel]
    batch: Callable[[list[int]], dict]


def _dsr(numbers):
    """Two rows with a video, two of text alone: a process, or a small batch, may see nothing."""
    videos = {0: ((2, 4, 4),), 1: ((2, 4, 6),)}
    samples = [dsr_samples.sample(i, videos=videos.get(i, ()), words=4 + i, answer=1 + 2 * i) for i in numbers]
    return dsr_samples.collate(samples, "right", with_labels=True)


def _pi3(numbers):
    whole = pi3_samples.targets(COUNT)
    for i in range(COUNT):
        whole["target_valid"][i, :, : 5 * i] = False
    whole["pixel_values"] = pi3_samples.images(COUNT)
    return {name: value[numbers] for name, value in whole.items()}


def _page4d(numbers):
    whole = test_modeling_page4d.targets(COUNT, 3)
    for i in range(COUNT):
        whole["depths"][i, 1:, : 6 * i] = 0
    whole["pixel_values"] = test_modeling_page4d.frames(COUNT, 3)
    return {name: value[numbers] for name, value in whole.items()}


def _frozen_qwen_sam(numbers):
    phrases = [(3, 2), (2,), (4, 1, 2), (1,)]
    return frozen_qwen_sam_samples.collate([frozen_qwen_sam_samples.sample(i, phrases=phrases[i]) for i in numbers])


def _rows(whole: dict, numbers) -> dict:
    return {name: value[numbers] for name, value in whole.items()}


def _cadrille(numbers):
    """Two rows of points, two of views: a process, or a small batch, may have one kind alone."""
    kinds = "ppvv"
    whole = cad_samples.cadrille_inputs(kinds, side="right", answer=6)
    for i in range(COUNT):
        supervised = (whole["labels"][i] != -100).nonzero().squeeze(1)
        whole["labels"][i, supervised[len(supervised) - 2 * i :]] = -100
    shown = {kinds[i] for i in numbers}
    absent = {"p": {"point_clouds"}, "v": {"pixel_values_videos", "video_grid_thw"}}
    left_out = set().union(*(absent[kind] for kind in absent.keys() - shown))
    return _rows({name: value for name, value in whole.items() if name not in left_out}, numbers)


def _cad_recode(numbers):
    whole = cad_samples.cad_recode_inputs(COUNT, side="right", answer=6, lengths=(2, 2, 2, 2))
    for i in range(COUNT):
        whole["labels"][i, -1 - 2 * i :] = -100
    return _rows(whole, numbers)


def _scene(numbers):
    model_queries = scene_samples.tiny_language_config().num_queries
    whole = scene_samples.prompts(COUNT, model_queries, "right", answer=5)
    for i in range(COUNT):
        supervised = (whole["labels"][i] != -100).nonzero().squeeze(1)
        whole["labels"][i, supervised[: len(supervised) - 1 - i]] = -100
    return _rows(whole, numbers) | _rows(scene_samples.scenes(COUNT), numbers)


CASES = {
    "dsr": Case(lambda: DSRForConditionalGeneration(dsr_samples.tiny_config()), _dsr),
    "pi3": Case(lambda: Pi3Model(pi3_samples.tiny_config(confidence_loss_weight=0.05)), _pi3),
    "page4d": Case(test_modeling_page4d.random_model, _page4d),
    "frozen_qwen_sam": Case(lambda: FrozenQwenSAMModel(frozen_qwen_sam_samples.tiny_config()), _frozen_qwen_sam),
    "cadrille": Case(lambda: CadrilleForConditionalGeneration(cad_samples.cadrille_config()), _cadrille),
    "cad_recode": Case(lambda: CADRecodeForCausalLM(cad_samples.cad_recode_config()), _cad_recode),
    "scene_qformer": Case(
        lambda: SceneQFormerForConditionalGeneration(scene_samples.tiny_language_config(map_config=None, dropout=0.0)),
        _scene,
    ),
}


def build(name: str) -> PreTrainedModel:
    """
    The model, with the same random weights every time. Without dropout and with batch norms that use what they have
    learnt: both make a sample depend on its place and its neighbours in the batch, whatever the loss does.
    """
    set_seed(0)
    model = CASES[name].model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval().train = lambda mode=True, module=module: module
    return model
