"""Preference pairs and rewards: the processors' collators for TRL's DPO, and TRL's GRPO for models that read points."""

from collections.abc import Callable

import torch

IMPOSSIBLE = -1e4  # a logit whose probability is 0 in float32


class PreferenceCollator:
    """
    `data_collator` of TRL's `DPOTrainer`: rows as the processor's own collator takes them, with "chosen" and "rejected"
    in place of the answer (or program), become one batch, first all chosen, then all rejected.

    Args:
        collator: of the processor. answer: the field that both stand for; "program" for the CAD models.
    """

    def __init__(self, collator: Callable, answer: str = "answer"):
        self.collator = collator
        self.answer = answer

    def __call__(self, rows: list[dict]) -> dict:
        for number, row in enumerate(rows):
            missing = [name for name in ("chosen", "rejected") if not row.get(name)]
            if missing:
                raise ValueError(f"Row {number} of the batch lacks {missing}; it has {sorted(row)}.")
        both = [
            {**{k: v for k, v in row.items() if k not in ("chosen", "rejected")}, self.answer: row[kind]}
            for kind in ("chosen", "rejected")
            for row in rows
        ]
        batch = dict(self.collator(both))
        batch["completion_mask"] = (batch.pop("labels") != -100).long()
        return batch


class ByNumber:
    """A collator for TRL's trainers, which want a table: `numbered(rows, collator)` makes both."""

    def __init__(self, rows, collator: Callable):
        self.rows, self.collator = rows, collator

    def __call__(self, entries: list[dict]) -> dict:
        return self.collator([self.rows[entry["row"]] for entry in entries])


def numbered(rows, collator: Callable):
    """
    A `datasets.Dataset` of the numbers of `rows` and the `data_collator` that turns them into batches: rows of any kind
    (videos, meshes, arrays) for `SFTTrainer` (with `dataset_kwargs={"skip_prepare_dataset": True}`) and `DPOTrainer`,
    which leaves a data set alone where it has a column of images.
    """
    from datasets import Dataset

    return Dataset.from_dict({"row": list(range(len(rows))), "images": [[]] * len(rows)}), ByNumber(rows, collator)


def parts_grpo_trainer(
    model,
    processor,
    rows,
    reward: Callable[[list[str], list[dict]], list[float]],
    arguments,
    show: str = "points",
    options: dict | None = None,
    **kwargs,
):
    """
    TRL's `GRPOTrainer` for Cadrille and CAD-Recode: programs are sampled for parts, judged, and made likelier by how
    much better they are than the others of their part.

    TRL gives models images and nothing else; here points or views follow every sample through generation, scoring and
    loss.

    Args:
        rows: with "cloud", "mesh", "views" or "text", and what `reward` reads. Indexable, with a length.
        reward: (programs, their rows) -> a number each, larger is better; such as
            `lambda programs, rows: dsr_toolkit.cad.reward(programs, [row["mesh"] for row in rows]).values`.
        arguments: of TRL's `GRPOConfig`; its `max_completion_length`, `temperature`, `top_p`, `top_k` count.
        show: "points" or "views": how Cadrille is shown a mesh.
        options: of the processor's `__call__`, such as `{"normalization": "program"}`.
    """
    from datasets import Dataset
    from trl import GRPOTrainer

    make = _Parts(processor, rows, show, options or {})

    def judged(prompts, completions, completion_ids, **_):
        programs = processor.decode_programs(torch.tensor(_padded(completion_ids, make.padding)))
        return reward(programs, [rows[int(prompt)] for prompt in prompts])

    class PartsGRPOTrainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            self.media = make.media([int(row["prompt"]) for row in inputs], self.accelerator.device)
            return {**super()._generate_and_score_completions(inputs), **self.media}

        def _compute_loss(self, model, inputs):
            self.media = {name: inputs[name] for name in make.names if name in inputs}
            return super()._compute_loss(model, inputs)

        def _get_per_token_logps_and_entropies(
            self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **_
        ):
            logps, entropies, batch_size = [], [], batch_size or len(input_ids)
            for start in range(0, len(input_ids), batch_size):
                part = slice(start, start + batch_size)
                media = {name: value[part] for name, value in self.media.items()}
                with self.accelerator.autocast():
                    logits = model(
                        input_ids=input_ids[part], attention_mask=attention_mask[part], use_cache=False, **media
                    ).logits
                logits = logits[:, -logits_to_keep - 1 : -1].float() / self.temperature
                # Finite: what comes after the end is padding, one of these, and the loss multiplies it with zero.
                logits[..., make.never(self.eos_token_ids)] = IMPOSSIBLE
                chosen = input_ids[part][:, -logits_to_keep:]
                log_probs = logits.log_softmax(-1)
                logps.append(log_probs.gather(-1, chosen[..., None]).squeeze(-1))
                entropies.append(-(log_probs.exp() * log_probs).sum(-1).detach())
            return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def rollout(prompts, trainer):
        """Sample a program for every prompt, the number of a row; as often as it is listed."""
        numbers = [int(prompt) for prompt in prompts]
        inputs = make.prompts(numbers, trainer.accelerator.device)
        model = trainer.accelerator.unwrap_model(trainer.model)
        training, settings = model.training, trainer.args
        with torch.no_grad():
            found = model.eval().generate(
                **inputs,
                do_sample=True,
                max_new_tokens=settings.max_completion_length,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k or 0,
                pad_token_id=make.padding,
                eos_token_id=trainer.eos_token_ids,
                suppress_tokens=make.never(trainer.eos_token_ids) or None,
            )
        model.train(training)
        length = inputs["input_ids"].shape[1]
        real = inputs["attention_mask"].bool()
        completions = [_until(row, trainer.eos_token_ids) for row in found[:, length:].tolist()]
        prompt_ids = [row[mask].tolist() for row, mask in zip(inputs["input_ids"], real)]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    data = Dataset.from_list([{"prompt": str(number)} for number in range(len(rows))])
    trainer = PartsGRPOTrainer(
        model=model,
        args=arguments,
        reward_funcs=[judged],
        train_dataset=data,
        processing_class=processor.tokenizer,
        rollout_func=rollout,
        **kwargs,
    )
    trainer.processor = processor
    return trainer


class _Parts:
    """Prompts and media of rows, by their numbers."""

    names = ("point_cloud", "point_clouds", "is_pc", "is_img", "pixel_values_videos", "video_grid_thw")

    def __init__(self, processor, rows, show: str, options: dict):
        self.processor, self.rows, self.show, self.options = processor, rows, show, options
        self.views = hasattr(processor, "render_views")
        self.padding = processor.tokenizer.pad_token_id
        self.last: tuple[list[int], dict] = ([], {})

    def prompts(self, numbers: list[int], device) -> dict[str, torch.Tensor]:
        """Each part is read and drawn once, however often it stands in `numbers`."""
        parts = sorted(set(numbers))
        if self.last[0] != parts:
            self.last = (parts, self._inputs([self.rows[number] for number in parts]))
        index = torch.tensor([parts.index(number) for number in numbers])
        return {name: value[index].to(device) for name, value in self.last[1].items()}

    def _inputs(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        given = {"cloud": "point_clouds", "mesh": "meshes", "views": "images"}
        arguments = {to: [row.get(name) for row in rows] for name, to in given.items() if any(name in r for r in rows)}
        if self.views:
            arguments |= {"text": [row.get("text") for row in rows], "modality": self.show}
        seeds = [int(row.get("seed", 0)) for row in rows]
        return dict(self.processor(**arguments, seed=seeds, return_tensors="pt", **self.options))

    def never(self, ends) -> list[int]:
        """
        Placeholders of media, which a program never has: a model that writes one asks for media that are not there.
        """
        names = ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>", "<|im_end|>")
        ids = self.processor.tokenizer.convert_tokens_to_ids(list(names))
        return [token for token in ids if token is not None and token not in ends]

    def media(self, numbers: list[int], device) -> dict[str, torch.Tensor]:
        inputs = self.prompts(numbers, device)
        return {name: inputs[name] for name in self.names if name in inputs}


def _until(row: list[int], ends) -> list[int]:
    """Tokens through the first end token."""
    stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: stop + 1]


def _padded(rows: list[list[int]], value: int) -> list[list[int]]:
    length = max(map(len, rows))
    return [list(row) + [value] * (length - len(row)) for row in rows]
