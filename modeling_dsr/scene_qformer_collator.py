"""Rows of six cameras, questions, answers and map lines to a training batch of the scene Q-Former."""

import numpy as np
import torch

from .training_collator import IGNORE_INDEX, TrainingCollator


class SceneQFormerCollator(TrainingCollator):
    """
    See [`TrainingCollator`]. Rows are dictionaries with

    - `images`, and where the model reads them `cam_intrinsics` and `cam_extrinsics`: one scene, as the processor takes
      it;
    - `question` and `answer`: texts; or lists of texts of the same length, several questions about the scene;
    - `map`: elements `{"label", "points" [n, 2]}`, metres in the LiDAR frame; an empty list says that there is nothing;

    A row has an answer, a map or both. Questions of one row, and its map, are prompts of their own that share the
    scene's tokens: a four-dimensional mask keeps them from reading each other, so that the loss is that of separate
    rows.

    Args:
        processor: a `SceneQFormerProcessor` with a tokenizer.
        map_points, point_range: of the model's `map_config`. Elements with another number of points are resampled at
            equal distances; those of `closed_classes` around their ring.
        map_every: map elements are learnt in one of so many batches only, drawn by the first row's seed. Their queries
            are many and cost more than a question does.

    Returns:
        (when called) inputs of the model: `pixel_values`, calibration, `input_ids`, `attention_mask`, `labels` (answers
        alone), with maps `map_labels`; where rows have several prompts also `position_ids`, and the mask is
        `[B, 1, L, L]`.
    """

    def __init__(
        self,
        processor,
        map_points: int = 20,
        point_range=(-15.0, -30.0, 15.0, 30.0),
        closed_classes=(1,),
        map_every: int = 1,
    ):
        if processor.tokenizer is None:
            raise ValueError("`processor` has no tokenizer, so there are no questions to learn.")
        super().__init__(processor)
        self.map_points, self.point_range = map_points, tuple(point_range)
        self.closed_classes, self.map_every = tuple(closed_classes), map_every

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        self.need(rows, "images")
        asked = [self._questions(number, row) for number, row in enumerate(rows)]
        with_map = [row.get("map") is not None for row in rows]
        if any(with_map) != all(with_map):
            raise ValueError(f"Either all rows of a batch have a `map` or none; row {with_map.index(False)} has none.")
        learn_map = all(with_map) and not (all(asked) and seeds[0] % self.map_every)
        for number, pairs in enumerate(asked):
            if not pairs and not learn_map:
                raise ValueError(
                    f'Row {number} must have "question" and "answer", or "map", or all three, got '
                    f"{sorted(rows[number])}."
                )
        given = [name for name in ("cam_intrinsics", "cam_extrinsics") if rows[0].get(name) is not None]
        images = [row["images"] for row in rows]
        batch = dict(self.processor(images, **{name: [row[name] for row in rows] for name in given}))
        batch |= self._text([self._segments(pairs, learn_map) for pairs in asked])
        if learn_map:
            batch["map_labels"] = [self._map(number, row["map"]) for number, row in enumerate(rows)]
        return batch

    # ---- text ----------------------------------------------------------------------------

    def _questions(self, number: int, row: dict) -> list[tuple[str, str]]:
        questions, answers = row.get("question"), row.get("answer")
        if isinstance(questions, str):
            questions, answers = [questions], [answers]
        questions, answers = list(questions or []), list(answers or [None] * len(questions or []))
        if len(questions) != len(answers):
            raise ValueError(
                f'Row {number} must have as many "question" as "answer", got {len(questions)} and {len(answers)}.'
            )
        for question, answer in zip(questions, answers):
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(f"Row {number}: `answer` to {question!r} must be a text, got {answer!r}.")
        return list(zip(questions, answers))

    def _segments(self, pairs, learn_map: bool) -> list[tuple[list[int], list[int], list[int]]]:
        """Ids before the scene, behind it, and of the answer; the map's prompt is last, for its queries follow it."""
        processor = self.processor
        texts = [processor.conversation(question, answer) for question, answer in pairs]
        if learn_map:
            texts.append((processor.map_prompt(), ""))
        segments = []
        for prompt, answer in texts:
            before, _, behind = prompt.partition(processor.image_token)
            ids = [processor.tokenizer(before)["input_ids"]]
            ids += [
                processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
                for text in (behind, answer)
            ]
            segments.append(tuple(ids))
        return segments

    def _text(self, rows: list[list[tuple]]) -> dict[str, torch.Tensor]:
        """Rows of prompts side by side behind their scene, padded on the right."""
        place = self.processor.scene_placeholders()
        lengths = []
        for segments in rows:
            if any(before != segments[0][0] for before, _, _ in segments):
                raise ValueError("The prompts of a row must have the same text before the scene to share it.")
            lengths.append(len(segments[0][0]) + len(place) + sum(len(b) + len(a) for _, b, a in segments))
        shape = (len(rows), max(lengths))
        tokenizer = self.processor.tokenizer
        ids = np.full(shape, tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        labels, positions = np.full(shape, IGNORE_INDEX), np.zeros(shape, np.int64)
        prompt = np.full(shape, -1)  # which prompt of the row; 0 is what they share, -1 padding
        for row, segments in enumerate(rows):
            shared = [*segments[0][0], *place]
            ids[row, : len(shared)], prompt[row, : len(shared)] = shared, 0
            positions[row, : len(shared)] = np.arange(len(shared))
            start = len(shared)
            for number, (_, behind, answer) in enumerate(segments, 1):
                end = start + len(behind) + len(answer)
                ids[row, start:end], prompt[row, start:end] = [*behind, *answer], number
                labels[row, end - len(answer) : end] = answer
                positions[row, start:end] = len(shared) + np.arange(end - start)
                start = end
        found = {"input_ids": torch.from_numpy(ids).long(), "labels": torch.from_numpy(labels).long()}
        prompt = torch.from_numpy(prompt)
        if max(map(len, rows)) == 1:
            return {**found, "attention_mask": (prompt >= 0).long()}
        reads = (prompt[:, :, None] == prompt[:, None]) | (prompt[:, None] == 0)
        reads &= torch.ones(shape[1], shape[1], dtype=torch.bool).tril() & (prompt >= 0)[:, :, None]
        return {**found, "attention_mask": reads[:, None], "position_ids": torch.from_numpy(positions)}

    # ---- map -----------------------------------------------------------------------------

    def _map(self, number: int, elements) -> dict[str, torch.Tensor]:
        low, high = np.array(self.point_range[:2]), np.array(self.point_range[2:])
        points = np.zeros((len(elements), self.map_points, 2), np.float32)
        for row, element in enumerate(elements):
            line = np.asarray(element["points"], float)
            if line.ndim != 2 or line.shape[1] != 2 or len(line) < 2 or not np.isfinite(line).all():
                raise ValueError(
                    f"Row {number}: `points` of map element {row} must be finite [n ≥ 2, 2], got {line.shape}."
                )
            if len(line) != self.map_points:
                line = resample(line, self.map_points, closed=element["label"] in self.closed_classes)
            points[row] = np.clip((line - low) / (high - low) * 2 - 1, -1, 1)
        labels = torch.tensor([int(element["label"]) for element in elements], dtype=torch.long)
        return {"class_labels": labels, "points": torch.from_numpy(points)}


def resample(points: np.ndarray, count: int, closed: bool = False) -> np.ndarray:
    """`[count, 2]` at equal distances along a line `[n, 2]`, or around a closed one (first point not repeated)."""
    if closed:
        points = np.concatenate([points, points[:1]])
    reached = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=-1).cumsum()])
    wanted = np.linspace(0, reached[-1], count, endpoint=not closed)
    return np.stack([np.interp(wanted, reached, points[:, axis]) for axis in (0, 1)], -1)
