"""
A scene Q-Former and a language model that learn the surround world from nothing, in the published order: the backbone
first learns to tell things apart (the published one came from ImageNet), then the whole model to describe what it sees,
then to answer questions.
"""

from pathlib import Path

import torch
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from modeling_dsr.configuration_scene_qformer import SceneQFormerConfig
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration
from modeling_dsr.processing_scene_qformer import SceneQFormerProcessor

from ...recipe import Recipe, Stage
from ...surround import CROP, CROP_LABELS, HEIGHT, MAP_INSTRUCTION, NUM_POINTS, WIDTH, build_words

BACKBONE = {
    "layer_type": "basic",
    "embedding_size": 24,
    "hidden_sizes": [32, 64],  # stride 8: 8×14 cells per camera
    "depths": [1, 2],
}
CAMERAS, PER_CAMERA = 6, 5
# What is seen without being told which thing is meant.
ROAD_TYPES = ["lanes", "lane", "bend", "crossing", "side"]


def build_backbone():
    """(model, processor) that tell crops apart."""
    config = ResNetConfig(
        **BACKBONE,
        id2label=dict(enumerate(CROP_LABELS)),
        label2id={label: number for number, label in enumerate(CROP_LABELS)},
    )
    return ResNetForImageClassification(config), SceneQFormerProcessor(image_size=(CROP, CROP))


def build(position_encoding: str = "depth_3d", width: int = 96, num_queries: int = 36):
    """(model, processor) of random weights, with a tokenizer of the world's words."""
    tokenizer = build_words()
    config = SceneQFormerConfig(
        embed_dims=width,
        num_queries=num_queries,
        num_constrained_queries=min(CAMERAS * PER_CAMERA, num_queries),
        num_decoder_layers=2,
        num_heads=4,
        ffn_dims=2 * width,
        dropout=0.0,
        position_encoding=position_encoding,
        sine_normalize_2pi=True,
        # Eight depths, and a box that holds all things, in metres.
        depth_num=8,
        depth_start=3.0,
        depth_max=24.0,
        use_lid=False,
        pc_range=(-24.0, -24.0, -2.0, 24.0, 24.0, 6.0),
        num_point_features=16,
        per_depth_dims=16,
        aggregation_dims=(128, 128),
        init_scale_camera=width**0.5,
        init_std_content=0.5,
        init_std_place=0.5,
        backbone_config={"model_type": "resnet", **BACKBONE},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            # The usual 0.02 is for widths of thousands; at this one attention would be blind to its input.
            "initializer_range": 0.1,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        map_config={
            "num_instances": 8,
            "num_points": NUM_POINTS,
            "embed_dims": width,
            "num_heads": 4,
            "num_layers": 2,
            "ffn_dims": 2 * width,
            "instance_dims": [width],
            "point_dims": [width],
            "num_refinements": 3,
            "coordinate_dims": 32,
            "num_frequencies": 6,
            "dropout": 0.0,
            "initializer_range": 0.1,
            # Half of the published weights: the answers' loss stands beside them here.
            "class_weight": 1.0,
            "points_weight": 2.5,
            "direction_weight": 0.125,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = SceneQFormerProcessor(
        tokenizer,
        image_size=(HEIGHT, WIDTH),
        num_scene_tokens=num_queries,
        needs_calibration=position_encoding != "sine_camera",
        map_instruction=MAP_INSTRUCTION,
    )
    model = SceneQFormerForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    begin_by_looking(model)
    return model, processor


@torch.no_grad()
def begin_by_looking(model) -> None:
    """
    Queries that read their own camera, and in it what stands out, from the first step: keys and queries start alike,
    and images weigh as much as places. From the usual start every query reads the mean of all images, to which a car
    contributes a hundredth, and learning waits for thousands of steps.
    """
    qformer = model.scene_qformer
    qformer.camera_embed.weight.mul_(1.5)
    qformer.neck[1].weight.fill_(2.0)
    for layer in qformer.scene_decoder.layers:
        attention = layer.multihead_attn
        query, key, _ = attention.in_proj_weight.chunk(3)
        for weight in (query, key):
            weight.mul_(0.3).add_(torch.eye(attention.dims))


def assemble(folders: dict[str, Path], output: Path, seed: int = 0, **options) -> None:
    """The model's folder: random weights behind the backbone that was trained in stage "see"."""
    set_seed(seed)
    model, processor = build(**options)
    trained = ResNetForImageClassification.from_pretrained(folders["see"])
    model.scene_qformer.backbone.load_state_dict(trained.resnet.state_dict())
    model.save_pretrained(output)
    processor.save_pretrained(output)


ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.02},
    "warmup_steps": 50,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "eval_steps": 500,
    "save_steps": 500,
    "dataloader_num_workers": 1,
}
DATA = "dsr_toolkit.training.surround"
SCENES = {
    "learning_rates": {r"\.backbone\.": 1e-4},
    "collator_options": {"map_points": NUM_POINTS, "map_every": 2},
    "evaluation": {"rows": f"{DATA}:rows", "seed": 2, "count": 64},
    "measure": f"{DATA}:measure",
    "show": f"{DATA}:show",
}
RECIPE = Recipe(
    name="tiny/scene_qformer",
    description="Six cameras of the surround world: questions about the street and what is on it, and its map lines.",
    stages=[
        Stage(
            name="see",
            model={"build": f"{__name__}:build_backbone"},
            data={"rows": f"{DATA}:crop_rows", "seed": 500},
            evaluation={"rows": f"{DATA}:crop_rows", "seed": 2, "count": 64},
            collator=f"{DATA}:CropCollator",
            measure=f"{DATA}:measure_crops",
            arguments={**ARGUMENTS, "learning_rate": 2e-3, "max_steps": 500},
        ),
        Stage(name="assemble", make=f"{__name__}:assemble"),
        Stage(
            name="look",
            model={"stage": "assemble"},
            data={"rows": f"{DATA}:rows", "seed": 1, "options": {"types": ROAD_TYPES}},
            arguments={**ARGUMENTS, "learning_rate": 1e-3, "max_steps": 2500},
            **SCENES,
        ),
        Stage(
            name="answer",
            model={"stage": "look"},
            data={"rows": f"{DATA}:rows", "seed": 101},
            arguments={**ARGUMENTS, "learning_rate": 1e-3, "max_steps": 6000},
            **SCENES,
        ),
    ],
)
