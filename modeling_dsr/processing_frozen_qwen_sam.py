"""Processor of FrozenQwenSAM: an image, phrases and captions in, masks out."""

import json
import os
import re

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import BatchFeature, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from .frozen_qwen_sam_collator import FrozenQwenSAMCollator
from .frozen_qwen_sam_phrases import captions_of_phrases, find_phrases, phrases_of_tokens
from .image_reader import read_image
from .media import Media
from .pictures import MASK_COLOURS, label_font, mask_to_rle, shifted_mask
from .processing_arguments import per_row, refuses_unreadable

DESCRIPTION_INSTRUCTION = "Please give me a description of the image."
FIND_PHRASES = (
    "Here is a description of a picture:\n{text}\n"
    "List the noun phrases in it that name visible things, word for word, as a JSON array of strings and nothing else."
)
# What the published training on referring expressions puts between image and caption: its instruction template, itself
# wrapped into the chat template. Checkpoints of that training have seen no other.
PUBLISHED_REFERRING_INSTRUCTION = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant"


class FrozenQwenSAMProcessor(ProcessorMixin):
    r"""
    Images, conversations and phrases to the inputs of [`FrozenQwenSAMModel`], and its outputs to masks, run lengths,
    scores and pictures.

    Args:
        image_processor: that of the Qwen-VL model. Always run on PIL, whose resampling the published weights have seen.
        tokenizer: that of the Qwen-VL model; a fast one, since phrases are found by its offsets.
        instruction (`str`, *optional*): what the user says next to the image where no conversation is given.
        sam_image_size (`int`, *optional*, defaults to 1024): side of SAM's square input.
    """

    mask_to_rle = staticmethod(mask_to_rle)

    media = Media

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        instruction: str = DESCRIPTION_INSTRUCTION,
        sam_image_size: int = 1024,
        **kwargs,
    ):
        if image_processor is not None and not isinstance(image_processor, Qwen2VLImageProcessorPil):
            image_processor = Qwen2VLImageProcessorPil.from_dict(image_processor.to_dict())
        self.instruction = instruction
        self.sam_image_size = sam_image_size
        self.image_token = getattr(tokenizer, "image_token", None) or "<|image_pad|>"
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        if tokenizer is not None:
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids", "attention_mask", "mm_token_type_ids", "mask_ids", "caption_ids", "pixel_values",
            "image_grid_thw",
            "sam_pixel_values", "original_sizes", "reshaped_input_sizes", "meta_data",
        ]  # fmt: skip

    # ---- to the model --------------------------------------------------------------------

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        phrases=None,
        captions=None,
        pieces=None,
        add_generation_prompt: bool = True,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one image, or one per row: PIL, arrays, paths or URLs.
            text: per row the instruction, or a conversation (list of messages with one image). A conversation that ends
                with the assistant's turn has the phrases in it; otherwise see `captions`. Default: `self.instruction`.
            phrases: per row the phrases to find: strings, or (start, end) character ranges of the caption. A string
                that is listed k times stands for its first k occurrences.
            captions: per row a text that contains the phrases, or None: each phrase is then a caption of its own, and
                phrases do not influence each other.
            pieces: instead of phrases and captions, per row a list of captions, each a list of (text, phrase or -1),
                whose texts are tokenised one by one; the published training sets are made so.
            kwargs: for the image processor, such as `max_pixels`.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids`, `mask_ids` (phrase of each token, -1 outside),
            `caption_ids` (0: prompt), all `[B, S]`, padded on the right; `pixel_values` `[P, 1176]`, `image_grid_thw`
            `[B, 3]`; `sam_pixel_values` `[B, 3, 1024, 1024]`, `original_sizes`, `reshaped_input_sizes` `[B, 2]`;
            `meta_data`, a list. Without phrases: the prompt for `answer`, without `mask_ids` and `caption_ids`.

        Raises:
            ValueError: no image; a phrase that is not in its caption (the nearest words are named); phrases that share
                their only token.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        if images is None or (isinstance(images, (list, tuple)) and not images):
            raise ValueError("`images` is missing: phrases are looked up in an image. Pass one image per row.")
        batched = isinstance(images, (list, tuple))
        images = [read_image(image) for image in (images if batched else [images])]
        rows = len(images)
        text, phrases, captions, pieces = (
            per_row(value, rows, batched, name)
            for name, value in (("text", text), ("phrases", phrases), ("captions", captions), ("pieces", pieces))
        )
        vision = self.image_processor(images, return_tensors="pt", **kwargs)
        data = {"pixel_values": vision["pixel_values"], "image_grid_thw": vision["image_grid_thw"]}

        encoded = []
        for row in range(rows):
            prompt, answer = self._prompt(text[row], add_generation_prompt)
            tokens = int(data["image_grid_thw"][row].prod()) // self.image_processor.merge_size**2
            prompt_ids = self._prompt_ids(prompt, tokens, row)
            found = pieces[row]
            if found is None and phrases[row] is not None:
                caption = captions[row] if captions[row] is not None else answer
                found = [self._caption_tokens(c, p, n) for c, p, n in captions_of_phrases(caption, phrases[row])]
            elif found is not None:
                found = [self._piece_tokens(caption) for caption in found]
            elif answer is not None or captions[row] is not None:
                raise ValueError(f"Row {row} has a caption but no `phrases` in it.")
            encoded.append((prompt_ids, found))
        if len({found is None for _, found in encoded}) > 1:
            raise ValueError("Either all rows have phrases or none.")
        data |= self._pad(encoded)

        sam = self._sam_processor()(images, return_tensors="pt")
        data["sam_pixel_values"] = sam["pixel_values"]
        data["original_sizes"] = torch.as_tensor(sam["original_sizes"])
        data["reshaped_input_sizes"] = torch.as_tensor(sam["reshaped_input_sizes"])
        data["meta_data"] = [
            self._meta_data(grid, image.size) for grid, image in zip(data["image_grid_thw"].tolist(), images)
        ]
        return BatchFeature(data)

    def _sam_processor(self):
        side = self.sam_image_size
        return SamImageProcessorPil(size={"longest_edge": side}, pad_size={"height": side, "width": side})

    def _prompt(self, text, add_generation_prompt: bool) -> tuple[str, str | None]:
        """The rendered prompt of a row, and the text of the assistant's last turn if the conversation ends with one."""
        answer: str | None = None
        conversation: list[dict]
        if text is None or isinstance(text, str):
            instruction = (
                (self.instruction if text is None else text).replace("<image>", "").replace(self.image_token, "")
            )
            content = [{"type": "image"}, {"type": "text", "text": instruction.strip() or "Describe this image."}]
            conversation = [{"role": "user", "content": content}]
        else:
            conversation = list(text)
            if conversation and conversation[-1]["role"] == "assistant":
                content = conversation.pop()["content"]
                answer = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        template = self.chat_template or self.tokenizer.chat_template
        return self.tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        ), answer

    def _prompt_ids(self, prompt: str, image_tokens: int, row: int) -> list[int]:
        shown = prompt.count(self.image_token)
        if shown != 1:
            raise ValueError(
                f"The conversation of row {row} shows {shown} images; phrases are looked up in exactly one, so it must "
                "hold one "
                '{"type": "image"}.'
            )
        prompt = prompt.replace(self.image_token, self.image_token * image_tokens)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def _caption_tokens(self, caption: str, spans: list[tuple[int, int]], numbers: list[int]):
        """Token ids of a caption and the phrase of each, by the tokenizer's offsets."""
        encoded = self.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], phrases_of_tokens(encoded["offset_mapping"], caption, spans, numbers)

    def _piece_tokens(self, caption):
        ids, mask_ids = [], []
        for text, phrase in caption:
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            mask_ids += [phrase] * len(piece)
        return ids, mask_ids

    def _pad(self, encoded) -> dict[str, torch.Tensor]:
        rows: dict[str, list] = {"input_ids": [], "mask_ids": [], "caption_ids": []}
        for prompt_ids, captions in encoded:
            captions = captions or []
            rows["input_ids"].append(prompt_ids + [token for ids, _ in captions for token in ids])
            rows["mask_ids"].append([-1] * len(prompt_ids) + [phrase for _, ids in captions for phrase in ids])
            numbers = [number for number, (ids, _) in enumerate(captions, 1) for _ in ids]
            rows["caption_ids"].append([0] * len(prompt_ids) + numbers)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        fill = {"input_ids": pad, "mask_ids": -1, "caption_ids": 0}
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in lists], True, fill[name])
            for name, lists in rows.items()
        }
        lengths = torch.tensor([len(row) for row in rows["input_ids"]])
        padded["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        padded["mm_token_type_ids"] = (padded["input_ids"] == self.image_token_id).int()
        if encoded[0][1] is None:
            del padded["mask_ids"], padded["caption_ids"]
        return padded

    def _meta_data(self, grid, size: tuple[int, int]) -> dict:
        height, width = (n * self.image_processor.patch_size for n in grid[1:])
        return {
            "image_shape": {"height": height, "width": width},
            "padded_shape": {"height": height, "width": width},
            "padding": {"before_height": 0, "after_height": 0, "before_width": 0, "after_width": 0},
            "scale_factor": (height / size[1], width / size[0]),
            "original_shape": {"height": size[1], "width": size[0]},
        }

    def infer_image_grid(self, meta_data, num_image_tokens=None) -> torch.Tensor:
        """
        `image_grid_thw` `[B, 3]` from the sizes in `meta_data`, where it got lost.

        Args:
            meta_data: per row, or one, with `padded_shape` or `image_shape`.
            num_image_tokens: per row, or one: image placeholders of the prompt; what they contradict is refused.
        """
        meta_data = [meta_data] if isinstance(meta_data, dict) else list(meta_data or [])
        if not meta_data:
            raise ValueError(
                "`image_grid_thw` and `meta_data` are both missing; one of them must tell the grid of the image."
            )
        counts = [num_image_tokens] * len(meta_data) if np.ndim(num_image_tokens) == 0 else num_image_tokens
        patch, merge = self.image_processor.patch_size, self.image_processor.merge_size
        grids = []
        for row, (meta, count) in enumerate(zip(meta_data, counts)):
            shape = meta.get("padded_shape") or meta.get("image_shape")
            if not shape:
                raise ValueError(
                    f"`meta_data[{row}]` has neither `padded_shape` nor `image_shape`: the grid cannot be inferred."
                )
            height, width = int(shape["height"]), int(shape["width"])
            if height % (patch * merge) or width % (patch * merge):
                raise ValueError(
                    f"`meta_data[{row}]` says {height}×{width} pixels, which are no multiples of {patch * merge}: it "
                    "does not describe a processed image."
                )
            grid = (1, height // patch, width // patch)
            expected = grid[1] * grid[2] // merge**2
            if count is not None and int(count) != expected:
                raise ValueError(
                    f"Image token count {int(count)} of row {row} does not match its `meta_data`: {height}×{width} "
                    f"pixels make {expected} tokens."
                )
            grids.append(grid)
        return torch.tensor(grids)

    # ---- answers -------------------------------------------------------------------------

    def token_spans(self, output_ids, phrases) -> list[tuple[int, int]]:
        """
        Where phrases stand in generated tokens, as half-open ranges for `FrozenQwenSAMModel.ground`.

        Works on the tokens themselves: tokenising the decoded text again need not give the same ones.
        """
        ids = torch.as_tensor(output_ids).tolist()
        text, offsets = self._decode_with_offsets(ids)
        spans = find_phrases(text, phrases)
        mask_ids = phrases_of_tokens(offsets, text, spans, list(range(len(spans))))
        return [(mask_ids.index(number), len(mask_ids) - mask_ids[::-1].index(number)) for number in range(len(spans))]

    def _decode_with_offsets(self, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = self.tokenizer.decode(ids, **options)
        ends = [0]
        for prefix in self.tokenizer.batch_decode([ids[: k + 1] for k in range(len(ids))], **options):
            # A prefix may end inside a character, of which decoding makes something else.
            ends.append(max(len(os.path.commonprefix([prefix, text])), ends[-1]))
        return text, [(start, max(end, min(start + 1, len(text)))) for start, end in zip(ends, ends[1:])]

    def region_prompt(self, question: str, num_tokens: int) -> torch.Tensor:
        """Prompt ids `[1, S]` that show a region of `num_tokens` vision tokens and ask again."""
        conversation = [
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {
                        "type": "text",
                        "text": f"{question}\nThis is the relevant part of the image. Answer with its help.",
                    },
                ],
            }
        ]
        prompt, _ = self._prompt(conversation, True)
        return torch.tensor([self._prompt_ids(prompt, num_tokens, 0)])

    def noun_phrase_prompt(self, text: str) -> BatchFeature:
        """`input_ids` and `attention_mask` `[1, S]` that ask the language model which noun phrases a text has."""
        conversation = [{"role": "user", "content": [{"type": "text", "text": FIND_PHRASES.format(text=text.strip())}]}]
        prompt = self.tokenizer.apply_chat_template(
            conversation, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")

    @staticmethod
    def noun_phrases(reply: str, text: str) -> list[str]:
        """
        The phrases of a reply, a JSON array or lines, that stand in `text`: in its spelling and order, without
        overlaps.

        What lies within a longer phrase is left out, as is what the text does not hold.
        """
        array = re.search(r"\[.*?\]", reply, re.DOTALL)
        try:
            listed = json.loads(array[0]) if array else []
        except ValueError:
            listed = []
        listed = listed or [line.strip(" \t-*•0123456789.\"',[]") for line in reply.splitlines()]
        spans: list[tuple[int, int]] = []
        wanted = {phrase.strip() for phrase in listed if isinstance(phrase, str) and phrase.strip()}
        for phrase in sorted(wanted, key=lambda phrase: (-len(phrase), phrase)):
            found = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)
            if found and not any(start < found.end() and found.start() < end for start, end in spans):
                spans.append(found.span())
        return [text[start:end] for start, end in sorted(spans)]

    def training_collator(self, **options) -> FrozenQwenSAMCollator:
        """
        A `data_collator` for `Trainer`: rows to inputs with labels; see [`FrozenQwenSAMCollator`] for rows and options.
        """
        return FrozenQwenSAMCollator(self, **options)

    # ---- back ----------------------------------------------------------------------------

    def post_process_masks(self, outputs, phrases=None, threshold: float = 0.5, return_rle: bool = False) -> list[dict]:
        """
        Args:
            outputs: of the model.
            phrases: per image the words, passed through to the result.
            threshold: probability from which a pixel is foreground.
            return_rle: also give COCO run lengths (uncompressed; `pycocotools.mask.frPyObjects` reads them).

        Returns:
            Per image a dict: `masks` bool `[n, H, W]` at the original size, `scores` `[n]` (mean probability inside the
            mask, 0 for an empty one), `boxes` `[n, 4]` x0, y0, x1, y1 around the masks (zeros for an empty one),
            `phrases`, and with `return_rle` the list `rle`.
        """
        if outputs.sam_pred_masks is None:
            raise ValueError("`outputs` holds coarse masks only; run the model with `use_sam=True`.")
        results = []
        for number, logits in enumerate(outputs.sam_pred_masks):
            probabilities = logits.detach().float().sigmoid()
            masks = probabilities > threshold
            area = masks.sum((1, 2))
            scores = (probabilities * masks).sum((1, 2)) / area.clamp_min(1)
            rows, columns = masks.any(2).to(torch.int8), masks.any(1).to(torch.int8)
            height, width = masks.shape[1:]
            boxes = (
                torch.stack(
                    [
                        columns.argmax(1),
                        rows.argmax(1),
                        width - columns.flip(1).argmax(1),
                        height - rows.flip(1).argmax(1),
                    ],
                    1,
                )
                * (area > 0)[:, None]
            )
            result = {"masks": masks.cpu(), "scores": scores.cpu(), "boxes": boxes.cpu()}
            if phrases is not None:
                result["phrases"] = list(phrases[number])
            if return_rle:
                result["rle"] = [mask_to_rle(mask) for mask in result["masks"].numpy()]
            results.append(result)
        return results

    def resize_attention_maps(self, mask_attentions: torch.Tensor, pred_masks: torch.Tensor) -> torch.Tensor:
        """Attention maps `[n, C, h, w]` of one image at the size of its coarse masks `[n, h', w']`, to look at."""
        size = tuple(pred_masks.shape[-2:])
        return torch.nn.functional.interpolate(mask_attentions.float(), size=size, mode="bilinear", align_corners=False)

    def draw_masks(self, image, result: dict) -> Image.Image:
        """The image with its masks in colour, outlined, and a legend of phrases and scores below it."""
        picture = np.asarray(read_image(image)).astype(np.float32)
        labels = [str(phrase) for phrase in result.get("phrases", [])] or [
            f"mask {i}" for i in range(len(result["masks"]))
        ]
        for number, mask in enumerate(result["masks"].numpy()):
            tint = np.array(MASK_COLOURS[number % len(MASK_COLOURS)], np.float32)
            edge = mask & ~(
                shifted_mask(mask, 0, 1)
                & shifted_mask(mask, 0, -1)
                & shifted_mask(mask, 1, 1)
                & shifted_mask(mask, 1, -1)
            )
            picture[mask] = 0.5 * picture[mask] + 0.5 * tint
            picture[edge] = tint
        size = max(14, picture.shape[1] // 45)
        sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + round(1.6 * size) * len(labels)), "white")
        sheet.paste(Image.fromarray(picture.round().astype(np.uint8)), (0, 0))
        draw = ImageDraw.Draw(sheet)
        for number, (label, score) in enumerate(zip(labels, result["scores"].tolist())):
            top = picture.shape[0] + round(1.6 * size) * number
            colour = MASK_COLOURS[number % len(MASK_COLOURS)]
            draw.rectangle((4, top + 4, 4 + size, top + 4 + size), fill=colour)
            line = f"{label}  {score:.2f}"
            draw.text((10 + size, top + 2), line, fill=(20, 20, 20), font=label_font(size, line))
        return sheet


FrozenQwenSAMProcessor.register_for_auto_class()
