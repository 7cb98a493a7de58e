"""The scene Q-Former in the surround world: questions answered by greedy generation, map lines found."""

from collections import defaultdict

from ..scenes import answer_questions, find_map, scene_tokens
from ..worlds.surround import SurroundWorld
from ..worlds.surround_questions import TYPES
from .map_metrics import map_scores

SCENES_AT_ONCE = 8
MAP_CLASSES = ("divider", "crossing", "boundary")
MAP_DISTANCE = 1.5  # metres


def evaluate(model, processor, seed: int, count: int = 100) -> dict:
    """
    Every question of `count` scenes, each asked on its own, and the map elements of each scene.

    An answer is right if it is the world's, word for word. Chance is the share of right answers of someone who knows
    what can be answered and sees nothing.

    Args:
        model: a `SceneQFormerForConditionalGeneration`. seed: of the world, one that the model was not trained on.

    Returns:
        `{"model_type", "seed", "count", "metrics"}`; metrics: `accuracy`, `accuracy_by_type`, `chance` by type,
        `questions`, and those of `map_scores` if the model has a map head.
    """
    world = SurroundWorld(seed)
    right, chance = defaultdict(list), {}
    predicted, wanted = [], []
    for start in range(0, count, SCENES_AT_ONCE):
        samples = [world[index] for index in range(start, min(start + SCENES_AT_ONCE, count))]
        tokens = scene_tokens(
            model,
            processor,
            [sample.images for sample in samples],
            [sample.cam_intrinsics for sample in samples],
            [sample.cam_extrinsics for sample in samples],
        )
        questions = [(row, question) for row, sample in enumerate(samples) for question in sample.questions]
        answers = answer_questions(
            model, processor, [question.text for _, question in questions], tokens[[row for row, _ in questions]]
        )
        for (_, question), given in zip(questions, answers):
            right[question.type].append(given.casefold() == question.answer.casefold())
            chance.setdefault(question.type, []).append(question.chance)
        if model.config.map_config is not None:
            predicted += find_map(model, processor, tokens)
            wanted += [sample.elements(model.config.map_config.num_points) for sample in samples]
    asked = [hit for hits in right.values() for hit in hits]
    metrics = {
        "accuracy": sum(asked) / len(asked),
        "accuracy_by_type": {kind: sum(right[kind]) / len(right[kind]) for kind in TYPES if kind in right},
        "chance": {kind: sum(chance[kind]) / len(chance[kind]) for kind in TYPES if kind in chance},
        "questions": len(asked),
    }
    if predicted:
        metrics |= map_scores(predicted, wanted, MAP_CLASSES, MAP_DISTANCE)
    return {"model_type": model.config.model_type, "seed": seed, "count": count, "metrics": metrics}
