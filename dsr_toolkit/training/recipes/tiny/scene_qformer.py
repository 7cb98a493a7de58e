"""A scene Q-Former and a language model that learn the surround world from nothing: first to look, then to answer."""

import torch

from ....evaluation.map_metrics import found_elements
from ....evaluation.world_scene import MAP_DISTANCE
from ....scenes import answer_questions, find_map, scene_tokens
from ....worlds.surround import SurroundWorld, plan
from ....worlds.surround_questions import describe
from ...recipe import Recipe, Stage
from ...rows import Mapped

HEIGHT, WIDTH = 64, 112
NUM_POINTS, NUM_INSTANCES = 8, 8
MAP_INSTRUCTION = "Find the dividers, crossings and boundaries of the road around the car as lines of points."
# What is seen without being told which thing is meant.
ROAD_TYPES = ["lanes", "lane", "bend", "crossing", "side"]
TEXT_SEED, TRAINING_SEED, EVALUATION_SEED = 0, 1, 2


def build(position_encoding: str = "depth_3d", width: int = 96, num_queries: int = 32):
    """(model, processor) of random weights, with a tokenizer of the world's words."""
    from modeling_dsr.configuration_scene_qformer import SceneQFormerConfig
    from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration
    from modeling_dsr.processing_scene_qformer import SceneQFormerProcessor

    tokenizer = build_words()
    config = SceneQFormerConfig(
        embed_dims=width,
        num_queries=num_queries,
        num_constrained_queries=0,
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
        backbone_config={
            "model_type": "resnet",
            "layer_type": "basic",
            "embedding_size": 24,
            "hidden_sizes": [32, 64],  # stride 8: 8×14 cells per camera
            "depths": [1, 2],
        },
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
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        map_config={
            "num_instances": NUM_INSTANCES,
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
    return model, processor


def build_words(samples: int = 300):
    """A byte-level tokenizer whose merges make one token of each word of the world."""
    from transformers import PreTrainedTokenizerFast

    from ....tiny.tokenizer import build_tokenizer

    corpus = [MAP_INSTRUCTION, "\n"]
    world = SurroundWorld(TEXT_SEED)
    for index in range(samples):
        for question, answer in questions_of(*world.scene(index), with_descriptions=True):
            corpus += [question, f" {answer}"]
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(corpus, merges=400),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=512,
    )


def questions_of(surroundings, questions, with_descriptions: bool) -> list[tuple[str, str]]:
    """(question, answer), those of the world first."""
    found = [(question.text, question.answer) for question in questions]
    return found + (list(describe(surroundings)) if with_descriptions else [])


def rows(seed: int, types: list[str] | None = None, descriptions: bool = True) -> Mapped:
    """
    Samples of the surround world as rows: six images, calibration, questions with answers, the map.

    Args:
        types: of the questions; default one of each. descriptions: of each direction, too.
    """

    def row(sample) -> dict:
        pairs = questions_of(sample.surroundings, sample.questions, descriptions)
        return {
            "images": sample.images,
            "cam_intrinsics": sample.cam_intrinsics,
            "cam_extrinsics": sample.cam_extrinsics,
            "question": [question for question, _ in pairs],
            "answer": [answer for _, answer in pairs],
            "map": sample.elements(NUM_POINTS),
            "type": [question.type for question in sample.questions]
            + ["description"] * (len(pairs) - len(sample.questions)),
            "sample": sample,
        }

    return Mapped(SurroundWorld(seed, HEIGHT, WIDTH, types), row)


def measure(model, processor, rows, inputs, outputs) -> dict:
    """
    Answers that greedy generation would write word for word: with the right words before it, each token is the
    likeliest. And map elements found.
    """
    guesses, labels = outputs.logits[:, :-1].argmax(-1), inputs["labels"][:, 1:]
    found: dict[str, list] = {}
    for row, guess, label in zip(rows, guesses, labels):
        wanted = (label >= 0).long()
        ends = torch.nonzero(torch.nn.functional.pad(wanted, (1, 1)).diff()).flatten().view(-1, 2)
        for kind, (start, end) in zip(row["type"], ends.tolist(), strict=True):
            right = bool((guess[start:end] == label[start:end]).all())
            found.setdefault(f"accuracy_{kind}", []).append(right)
            if kind != "description":
                found.setdefault("accuracy", []).append(right)
    if outputs.class_logits is not None:
        point_range = model.config.map_config.point_range
        for row, scene in zip(rows, processor.post_process_map_detection(outputs, point_range=point_range)):
            predicted = {name: values.float().cpu().numpy() for name, values in scene.items()}
            found.setdefault("map_recall", []).extend(found_elements(predicted, row["map"], MAP_DISTANCE)[1])
    return found


def show(model, processor, rows) -> list[dict]:
    """Questions with the true answer and the model's, and the street from above with the lines that it found."""
    shown = []
    for row in rows:
        tokens = scene_tokens(
            model, processor, *([row[name]] for name in ("images", "cam_intrinsics", "cam_extrinsics"))
        )
        count = len(row["sample"].questions)
        answers = answer_questions(model, processor, row["question"][:count], tokens.expand(count, -1, -1))
        lines = [points for points in find_map(model, processor, tokens)[0]["points"]]
        told = [f"{q} {said} ({true})" for q, said, true in zip(row["question"], answers, row["answer"])]
        shown.append({"answers (truth)": told, "map": plan(row["sample"], found=lines)})
    return shown


ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.02},
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "eval_steps": 500,
    "save_steps": 500,
    "dataloader_num_workers": 1,
}
ROWS = f"{__name__}:rows"
COMMON = {
    "collator_options": {"map_points": NUM_POINTS, "map_every": 2},
    "evaluation": {"rows": ROWS, "seed": EVALUATION_SEED, "count": 160},
    "measure": f"{__name__}:measure",
    "show": f"{__name__}:show",
}
RECIPE = Recipe(
    name="tiny/scene_qformer",
    description="Six cameras of the surround world: questions about the street and what is on it, and its map lines.",
    stages=[
        Stage(
            name="look",
            model={"build": f"{__name__}:build"},
            data={"rows": ROWS, "seed": TRAINING_SEED, "options": {"types": ROAD_TYPES}},
            arguments={**ARGUMENTS, "max_steps": 2000},
            **COMMON,
        ),
        Stage(
            name="answer",
            model={"stage": "look"},
            data={"rows": ROWS, "seed": TRAINING_SEED + 100},
            arguments={**ARGUMENTS, "max_steps": 3000},
            **COMMON,
        ),
    ],
)
