"""Answers of FrozenQwenSAM's language model, masks for what they name, and a second look at a region."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .frozen_qwen_sam_outputs import FrozenQwenSAMAnswer, FrozenQwenSAMFeatures, FrozenQwenSAMOutput


@dataclass
class GroundedAnswer:
    """
    An answer and what it names.

    Attributes:
        answer: text. phrases: of the answer. state: what further calls go on from.
        output: of [`FrozenQwenSAMModel`] for the phrases; None without any.
    """

    answer: str
    phrases: list[str]
    state: FrozenQwenSAMAnswer
    output: FrozenQwenSAMOutput | None


def _part_of_cache(cache: DynamicCache, row: int, start: int, stop: int) -> DynamicCache:
    """Keys and values of one row from token `start` up to `stop`."""
    part = DynamicCache()
    for number, layer in enumerate(cache.layers):
        part.update(layer.keys[row : row + 1, :, start:stop], layer.values[row : row + 1, :, start:stop], number)
    return part


class FrozenQwenSAMAnswers:
    """The part of [`FrozenQwenSAMModel`] that answers and grounds what it said."""

    @torch.no_grad()
    def answer(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        image_grid_thw: torch.LongTensor,
        mm_token_type_ids: torch.IntTensor,
        attention_mask: torch.Tensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        meta_data: list[dict] | None = None,
        **generate_kwargs,
    ) -> FrozenQwenSAMAnswer:
        """
        Let the language model answer a question about one image, and keep what grounding the answer needs.

        Args: the processor's output for one prompt that ends with the answer's header, and options of `generate`.
        """
        if input_ids.shape[0] != 1:
            raise ValueError(f"`answer` takes one prompt with one image, got {input_ids.shape[0]} prompts.")
        (state,) = self.answers(
            input_ids, pixel_values, image_grid_thw, mm_token_type_ids, attention_mask, sam_pixel_values,
            original_sizes, reshaped_input_sizes, meta_data, **generate_kwargs,
        )  # fmt: skip
        return state

    @torch.no_grad()
    def answers(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        image_grid_thw: torch.LongTensor,
        mm_token_type_ids: torch.IntTensor,
        attention_mask: torch.Tensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        meta_data: list[dict] | None = None,
        **generate_kwargs,
    ) -> list[FrozenQwenSAMAnswer]:
        """
        As `answer`, of several prompts `[B, S]` with one image each, which share one call of `generate`.

        Args: prompts padded on the left, where `attention_mask` is 0; images and sizes in their order.
        """
        count, length = input_ids.shape
        if len(image_grid_thw) != count:
            raise ValueError(f"Each prompt has one image, got {count} prompts and {len(image_grid_thw)} images.")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        vision_tokens = []
        hook = self.vlm.model.visual.register_forward_hook(
            lambda module, args, output: vision_tokens.append(output.pooler_output)
        )
        try:
            generated = self.vlm.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                mm_token_type_ids=mm_token_type_ids,
                return_dict_in_generate=True,
                use_cache=True,
                **{"do_sample": False, "max_new_tokens": 256, **generate_kwargs},
            )
        finally:
            hook.remove()
        merge = self.config.vlm_config.vision_config.spatial_merge_size
        seen = vision_tokens[0].split((image_grid_thw.prod(1) // merge**2).tolist())
        embeddings = None if sam_pixel_values is None else self.get_image_embeddings(sam_pixel_values)
        states = []
        for row, padding in enumerate((length - attention_mask.sum(1)).tolist()):
            ids, prompt = self._until_end(generated.sequences[row, length:]), input_ids[row : row + 1, padding:]
            features = FrozenQwenSAMFeatures(
                prefix_ids=prompt[:, :-1],
                prefix_lengths=torch.tensor([length - padding - 1]),
                past_key_values=_part_of_cache(generated.past_key_values, row, padding, length - 1),
                vision_tokens=(seen[row],),
                image_embeddings=None if embeddings is None else embeddings[row : row + 1],
            )
            images = {"image_grid_thw": image_grid_thw, "original_sizes": original_sizes,
                      "reshaped_input_sizes": reshaped_input_sizes, "meta_data": meta_data}  # fmt: skip
            inputs = {name: None if value is None else value[row : row + 1] for name, value in images.items()}
            states.append(FrozenQwenSAMAnswer(ids, torch.cat([prompt, ids[None]], dim=1), features, inputs))
        return states

    @torch.no_grad()
    def given_answer(
        self,
        input_ids: torch.LongTensor,
        answer_length: int,
        pixel_values: torch.FloatTensor,
        image_grid_thw: torch.LongTensor,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        meta_data: list[dict] | None = None,
        **kwargs,
    ) -> FrozenQwenSAMAnswer:
        """As `answer`, of tokens that are known: the last `answer_length` of `input_ids` `[1, S]`."""
        if not 0 < answer_length < input_ids.shape[1]:
            raise ValueError(f"`answer_length` must be between 1 and {input_ids.shape[1] - 1}, got {answer_length}.")
        inputs = {
            "image_grid_thw": image_grid_thw,
            "original_sizes": original_sizes,
            "reshaped_input_sizes": reshaped_input_sizes,
            "meta_data": meta_data,
        }
        answer = FrozenQwenSAMAnswer(input_ids[0, -answer_length:], input_ids, None, inputs)
        tokens = self._answer_inputs(answer, torch.zeros(answer_length, dtype=torch.long), True)
        layout = self.layout(input_ids, tokens["mask_ids"], image_grid_thw, caption_ids=tokens["caption_ids"])
        answer.features = self._read_prefix(layout, input_ids, pixel_values, image_grid_thw)
        if sam_pixel_values is not None:
            answer.features.image_embeddings = self.get_image_embeddings(sam_pixel_values)
        return answer

    def _until_end(self, ids: torch.Tensor) -> torch.Tensor:
        """Generated tokens before the first end or padding token."""
        generation = self.vlm.generation_config
        ends = [generation.eos_token_id, generation.pad_token_id]
        ends = [end for value in ends if value is not None for end in (value if isinstance(value, list) else [value])]
        stop = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype, device=ids.device)).nonzero()
        return ids[: int(stop[0])] if len(stop) else ids

    def _answer_inputs(self, answer: FrozenQwenSAMAnswer, phrase_of_token: torch.Tensor, aligned: bool) -> dict:
        """`forward`'s token inputs with phrases in the answer: `phrase_of_token` `[T]`, -1 outside."""
        prompt, total = answer.prompt_length, answer.input_ids.shape[1]
        mask_ids = torch.full((1, total), -1)
        start = prompt if aligned else prompt - 1  # the row before a token's own predicted it
        mask_ids[0, start : start + len(phrase_of_token)] = phrase_of_token
        caption_ids = (torch.arange(total) >= prompt - 1).long()[None]
        return {"input_ids": answer.input_ids, "mask_ids": mask_ids, "caption_ids": caption_ids}

    def ground(
        self, answer: FrozenQwenSAMAnswer, spans: list[tuple[int, int]], aligned: bool = True, **kwargs
    ) -> FrozenQwenSAMOutput:
        """
        Masks for spans of an answer's tokens. The image is not read again.

        Args:
            spans: half-open ranges of `answer.output_ids`, without overlap.
            aligned: use the attention *of* the tokens. False: of the tokens before them, which predicted them, as the
                published inference does (and its training does not).
            kwargs: `multimask_output`, `use_sam` of `forward`.
        """
        phrase_of_token = torch.full((len(answer.output_ids),), -1)
        for number, (start, end) in enumerate(spans):
            if not 0 <= start < end <= len(answer.output_ids):
                raise ValueError(
                    f"`spans[{number}]` is {(start, end)}, but the answer has {len(answer.output_ids)} tokens."
                )
            if (phrase_of_token[start:end] >= 0).any():
                raise ValueError(
                    f"`spans[{number}]` {(start, end)} overlaps another one; ground it in a call of its own."
                )
            phrase_of_token[start:end] = number
        return self(
            **self._answer_inputs(answer, phrase_of_token, aligned), features=answer.features, **answer.inputs, **kwargs
        )

    def answer_and_ground(
        self,
        processor,
        inputs: dict,
        phrases: list[str] | None = None,
        max_phrases: int | None = None,
        **generate_kwargs,
    ) -> GroundedAnswer:
        """
        Answer a question about an image and mark what the answer names.

        Args:
            processor: the [`FrozenQwenSAMProcessor`]. inputs: what it made of one prompt.
            phrases: words of the answer to look for; None: the language model lists the answer's noun phrases.
            max_phrases: at most so many, the first of the answer.
            generate_kwargs: options of `generate`, of the answer and of the list.

        Raises:
            ValueError: the answer does not hold one of the given phrases.
        """
        (grounded,) = self.answers_and_ground(processor, inputs, [phrases], max_phrases, **generate_kwargs)
        if isinstance(grounded, ValueError):
            raise grounded
        return grounded

    def answers_and_ground(
        self,
        processor,
        inputs: dict,
        phrases: list[list[str] | None],
        max_phrases: int | None = None,
        list_kwargs: dict | None = None,
        **generate_kwargs,
    ) -> list[GroundedAnswer | ValueError]:
        """
        As `answer_and_ground`, of several prompts: see `answers` for `inputs`.

        Args:
            phrases: of each prompt. list_kwargs: options of the list's `generate`, over those of the answer's.

        Returns:
            per prompt what was found, or why its phrases cannot be marked.
        """
        states = self.answers(**inputs, **generate_kwargs)
        texts = [
            processor.tokenizer.decode(state.output_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for state in states
        ]
        unlisted = [number for number, given in enumerate(phrases) if given is None]
        options = {**generate_kwargs, **(list_kwargs or {})}
        listed = dict(zip(unlisted, self.phrase_lists(processor, [texts[number] for number in unlisted], **options)))
        grounded = []
        for number, (state, text) in enumerate(zip(states, texts)):
            chosen = list(listed[number] if number in listed else phrases[number])[:max_phrases]
            try:
                output = None
                if chosen:
                    with torch.no_grad():
                        output = self.ground(state, processor.token_spans(state.output_ids, chosen))
                grounded.append(GroundedAnswer(text, chosen, state, output))
            except ValueError as error:
                grounded.append(error)
        return grounded

    def list_phrases(self, processor, text: str, **generate_kwargs) -> list[str]:
        """
        The noun phrases of a text, in its own words: the language model lists them.

        What it lists and the text does not hold is left out, as is what lies within a longer phrase.
        """
        return self.phrase_lists(processor, [text], **generate_kwargs)[0]

    @torch.no_grad()
    def phrase_lists(self, processor, texts: list[str], **generate_kwargs) -> list[list[str]]:
        """`list_phrases` of several texts, which share one call of `generate`."""
        if not any(text.strip() for text in texts):
            return [[] for _ in texts]
        prompts = [processor.noun_phrase_prompt(text)["input_ids"][0] for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(prompts, batch_first=True, padding_value=processor.tokenizer.pad_token_id or 0, padding_side="left")
        known = pad([torch.ones_like(one) for one in prompts], batch_first=True, padding_side="left")
        options = {"max_new_tokens": 128, **generate_kwargs, "do_sample": False}
        replies = self.vlm.generate(input_ids=ids.to(self.device), attention_mask=known.to(self.device), **options)
        lists = []
        for text, reply in zip(texts, replies[:, ids.shape[1] :]):
            spoken = processor.tokenizer.decode(self._until_end(reply), skip_special_tokens=True)
            lists.append(processor.noun_phrases(spoken, text) if text.strip() else [])
        return lists

    @torch.no_grad()
    def token_maps(self, answer: FrozenQwenSAMAnswer, aligned: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Attention `[layers, heads, T, h, w]` of every token of an answer to the image, and its weighted states `[T, D]`.
        """
        inputs = self._answer_inputs(answer, torch.arange(len(answer.output_ids)), aligned)
        grid = answer.inputs["image_grid_thw"]
        layout = self.layout(inputs["input_ids"], inputs["mask_ids"], grid, caption_ids=inputs["caption_ids"])
        states = self.read_captions(layout, inputs["input_ids"], answer.features, "mean")
        heads = self.config.get_text_config().num_attention_heads
        maps = states.attentions.unflatten(1, (-1, heads)).permute(1, 2, 0, 3)
        return maps.unflatten(-1, tuple(layout.grids[0].tolist())), self.weigh_layers(states.hidden_states)

    def region_tokens(self, answer: FrozenQwenSAMAnswer, box) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
        """
        What the language model read of a region of an answer's image.

        Args:
            box: x0, y0, x1, y1 in pixels of the original image.

        Returns:
            Vision tokens `[cells, D]`, and the region's (row0, row1, col0, col1) on the grid of cells.
        """
        if answer.inputs["original_sizes"] is None:
            raise ValueError("The answer does not know the size of its image; pass `original_sizes` to `answer`.")
        merge = self.config.vlm_config.vision_config.spatial_merge_size
        rows, columns = (int(n) // merge for n in answer.inputs["image_grid_thw"][0, 1:])
        height, width = (int(n) for n in torch.as_tensor(answer.inputs["original_sizes"])[0])
        bounds = region_cells(box, (height, width), (rows, columns))
        row0, row1, col0, col1 = bounds
        tokens = answer.features.vision_tokens[0].unflatten(0, (rows, columns))
        return tokens[row0:row1, col0:col1].flatten(0, 1), bounds

    @torch.no_grad()
    def answer_about_tokens(self, input_ids: torch.LongTensor, tokens: torch.Tensor, **generate_kwargs) -> torch.Tensor:
        """
        Answer a prompt `[1, S]` whose image placeholders stand for given vision tokens `[cells, D]`; returns `[T]` ids.

        The placeholders are numbered like text: a region has no grid of its own in the published method.
        """
        embeds = self.vlm.get_input_embeddings()(input_ids)
        is_image = input_ids == self.config.vlm_config.image_token_id
        if int(is_image.sum()) != len(tokens):
            raise ValueError(f"The prompt holds {int(is_image.sum())} image placeholders for {len(tokens)} `tokens`.")
        embeds = embeds.masked_scatter(is_image[..., None], tokens.to(embeds))
        generated = self.vlm.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(input_ids),
            **{"do_sample": False, "max_new_tokens": 256, **generate_kwargs},
        )
        return self._until_end(generated[0])


def region_cells(box, original_size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """
    The smallest rectangle of grid cells that covers a box, at least one cell.

    Args:
        box: x0, y0, x1, y1 in pixels; clipped to the image. original_size, grid: (height, width) in pixels and cells.

    Returns:
        (row0, row1, col0, col1), half-open.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    ranges = []
    for low, high, size, cells in ((y0, y1, original_size[0], grid[0]), (x0, x1, original_size[1], grid[1])):
        low, high = (min(max(value, 0.0), float(size)) * cells / size for value in (low, high))
        first = min(int(low // 1), cells - 1)
        ranges += [first, min(max(int(-(-high // 1)), first + 1), cells)]
    return tuple(ranges)
