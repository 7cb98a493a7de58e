"""Rows of video, question and answer to the training inputs of DSR."""

import torch
from transformers.video_utils import VideoMetadata

from .training_collator import IGNORE_INDEX, TrainingCollator, chat_answers


class DSRCollator(TrainingCollator):
    """
    See [`TrainingCollator`]. Labels cover the assistant's turns alone.

    Rows: "video" (a path, or frames [T, H, W, 3] uint8 with "fps"), or a list of them under "videos"; "image" or
        "images"; "question" and "answer", or lists of them about one video, which is encoded once; and "system" if
        there is one. Or "messages", a conversation whose parts hold the media ({"type": "video", "video": …}) or name
        them ({"type": "video"}, the media then in the row).

    Args:
        processor: a [`DSRProcessor`].
        packed: put all samples of a batch into one row, numbered by its attention mask: no padding is computed, and no
            sample sees another.
        max_length: ValueError for rows of more tokens; None: any length. Rows are never cut: that would cut videos.
        processor_options: for the processor, such as `num_frames`.
    """

    def __init__(self, processor, max_length: int | None = None, packed: bool = False, **processor_options):
        super().__init__(processor)
        self.packed = packed
        self.max_length = max_length
        self.processor_options = processor_options

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        texts, images, videos, metadata, copies = [], [], [], [], []
        for number, row in enumerate(rows):
            asked = each_question(row, number)
            copies.append(len(asked))
            for one in asked:
                messages, media = self.conversation(one, number)
                texts.append(self.processor.apply_chat_template(messages, tokenize=False))
            images += media["image"]
            videos += media["video"]
            metadata += [_metadata(video, row.get("fps")) for video in media["video"]]
        options = dict(self.processor_options)
        if videos and not any(isinstance(video, str) for video in videos) and None not in metadata:
            options["video_metadata"] = metadata
        options |= {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        batch = self.encode(texts, images, videos, copies, options)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.max_length is not None and ids.shape[1] > self.max_length:
            row = int(mask.sum(1).argmax())
            raise ValueError(
                f"Row {row} of the batch has {ids.shape[1]} tokens, more than `max_length` {self.max_length}. Show "
                "fewer or smaller frames."
            )
        tokenizer = self.processor.tokenizer
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        header = tokenizer.encode("assistant\n", add_special_tokens=False)
        labels = torch.where(chat_answers(ids, start, header, mask), ids, IGNORE_INDEX)
        self.check_supervised(labels)
        batch["labels"] = labels
        return pack(dict(batch)) if self.packed else dict(batch)

    def encode(self, texts: list[str], images: list, videos: list, copies: list[int], options: dict):
        """Inputs of prompts and their media; where there are several prompts in a row, `copies[i]` are about video i,
        whose pixels are there once."""
        if max(copies) == 1:
            return self.processor(text=texts, images=images or None, videos=videos or None, **options)
        starts = [sum(copies[:number]) for number in range(len(copies))]
        batch = self.processor(text=[texts[start] for start in starts], videos=videos, **options)
        grids = batch["video_grid_thw"].repeat_interleave(torch.tensor(copies), 0)
        rest = {name: options[name] for name in ("padding", "padding_side", "return_tensors")}
        prompts = self.processor(text=texts, video_grid_thw=grids, **rest)
        batch.update({name: prompts[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")})
        batch["video_copies"] = torch.tensor(copies)
        return batch

    def conversation(self, row: dict, number: int = 0) -> tuple[list[dict], dict[str, list]]:
        """Messages of a row with bare placeholders, and its images and videos in the order of those."""
        given = {kind: _media(row, kind) for kind in ("image", "video")}
        if "messages" not in row:
            self.need([row], "question", "answer")
            content = [{"type": kind} for kind in ("image", "video") for _ in given[kind]]
            messages = [
                {"role": "user", "content": [*content, {"type": "text", "text": row["question"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]},
            ]
            if "system" in row:
                messages.insert(0, {"role": "system", "content": [{"type": "text", "text": row["system"]}]})
            return messages, given
        messages, media = [], {"image": [], "video": []}
        for message in row["messages"]:
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            parts = []
            for part in content:
                kind = part.get("type")
                if kind in media:
                    here = next((part[name] for name in (kind, "path", "url") if name in part), None)
                    if here is None:
                        if not given[kind]:
                            raise ValueError(f"Row {number} shows more {kind}s in its messages than it holds.")
                        here = given[kind].pop(0)
                    media[kind].append(here)
                    part = {"type": kind}
                parts.append(part)
            messages.append({**message, "content": parts})
        left = [kind for kind in media if given[kind]]
        if left:
            raise ValueError(f"Row {number} holds more {left[0]}s than its messages show.")
        return messages, media


def pack(batch: dict) -> dict:
    """The rows of a padded batch one after another in one row; the mask numbers them 1, 2, …"""
    real = batch["attention_mask"].bool()
    rows = {name: batch[name][real][None] for name in ("input_ids", "labels", "mm_token_type_ids") if name in batch}
    numbers = torch.arange(1, len(real) + 1, device=real.device)[:, None].expand_as(real)
    return {**batch, **rows, "attention_mask": numbers[real][None]}


def each_question(row: dict, number: int) -> list[dict]:
    """A row of lists of questions and answers as rows of one each."""
    questions, answers = row.get("question"), row.get("answer")
    if not isinstance(questions, list):
        return [row]
    if not isinstance(answers, list) or len(answers) != len(questions) or not questions:
        raise ValueError(f"Row {number} must have as many answers as questions, and at least one.")
    if len(_media(row, "video")) != 1 or _media(row, "image"):
        raise ValueError(f"Row {number} has several questions, which must be about one video alone.")
    return [{**row, "question": question, "answer": answer} for question, answer in zip(questions, answers)]


def _media(row: dict, kind: str) -> list:
    if kind in row and f"{kind}s" in row:
        raise ValueError(f"A row has {kind!r} or {kind + 's'!r}, not both.")
    return [row[kind]] if kind in row else list(row.get(f"{kind}s", []))


def _metadata(video, fps) -> VideoMetadata | None:
    """Timing of frames that are given, where their rate is known."""
    if isinstance(video, str) or fps is None:
        return None
    count = len(video)
    return VideoMetadata(
        total_num_frames=count, fps=float(fps), duration=count / float(fps), frames_indices=list(range(count))
    )
