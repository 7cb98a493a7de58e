"""transformers' Trainer with what spatial models need beside the loss: its terms, rate groups, measures,
predictions."""

import re
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.utils.data import SequentialSampler
from transformers import ProcessorMixin, Trainer, TrainerCallback

from .answers import is_sharded
from .measures import Measures
from .rows import Rows

ROWS = "rows_of_the_batch"


class WithRows:
    """A collator that hands its rows on beside the batch, for measures that compare with the truth in them."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, rows: list[dict]) -> dict:
        return {**self.collator(rows), ROWS: rows}


class Epochs(TrainerCallback):
    """
    Tells rows their epoch. accelerate tells a data set alone where its sampler needs no telling: not where batches of
    shuffled rows are shared out between processes, nor where a resumed run leaves some out.
    """

    def __init__(self, rows: Rows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.set_epoch(int(state.epoch or 0))


class SpatialTrainer(Trainer):
    """
    Args:
        learning_rates: {regular expression: rate} by parameter name; see [`Stage`].
        feature_cache: a [`FeatureCache`] that is attached to the model; training rows then come from its collator.
        measure, show: functions; see [`Stage`]. shown: rows that `show` gets.
        on_shown: called with (step, what `show` returned).

    The other arguments are those of Trainer. Training logs also hold the mean of each term of `outputs.losses`.
    """

    def __init__(
        self, *args, learning_rates=None, measure=None, show=None, shown=4, on_shown=None, feature_cache=None, **kwargs
    ):
        self.processor = kwargs.pop("processing_class", None)
        # Trainer takes every processor to have a tokenizer; one that reads images alone has none.
        silent = isinstance(self.processor, ProcessorMixin) and getattr(self.processor, "tokenizer", None) is None
        super().__init__(*args, processing_class=None if silent else self.processor, **kwargs)
        if isinstance(self.train_dataset, Rows):
            self.add_callback(Epochs(self.train_dataset))
        self.learning_rates, self.feature_cache = learning_rates or {}, feature_cache
        self.measure, self.show, self.shown, self.on_shown = measure, show, shown, on_shown
        self._terms: dict[str, list[torch.Tensor]] = {}
        self._measures, self._eval_steps = Measures(), 0

    # ---- training ------------------------------------------------------------------------

    def get_train_dataloader(self):
        plain = self.data_collator
        if self.feature_cache is not None:
            self.data_collator = self.feature_cache.collator(plain, f"bf16 {self.args.bf16} fp16 {self.args.fp16}")
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, Rows) and dataset.endless:
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.learning_rates:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups = rate_groups(model, self.learning_rates, self.args.learning_rate, self.args.weight_decay, decayed)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **settings)
        return super().create_optimizer(model)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        with nullcontext() if self.feature_cache is None else self.feature_cache.reading(inputs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training and not loss.isfinite().all():
            raise ValueError(
                f"The loss is {loss.item():g} at step {self.state.global_step + 1}: the training has diverged. Lower "
                "the learning rate, warm up longer, or clip gradients (`max_grad_norm`). An earlier checkpoint is "
                "whole."
            )
        if model.training:
            for name, value in (getattr(outputs, "losses", None) or {}).items():
                self._terms.setdefault(name, []).append(value.detach().float().mean())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            terms = {f"loss_{name}": torch.stack(values).mean().item() for name, values in self._terms.items()}
            logs = {**logs, **terms}
            self._terms.clear()
        super().log(logs, *args, **kwargs)

    # ---- evaluation ----------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None):
        plain, self.data_collator = self.data_collator, WithRows(self.data_collator)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = plain

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, always, and the measures of this batch: no output leaves the batch."""
        rows = inputs.pop(ROWS, None)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            items = self._get_num_items_in_batch([inputs], self.args.device)
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
            if self.measure is not None and rows is not None:
                self._measure(model, rows, inputs, outputs)
        return loss.detach().mean(), None, None

    def _measure(self, model, rows, inputs, outputs) -> None:
        """Measure a batch without the rows that fill up the last batches of several processes: they count once."""
        # Batches go round the processes. What lies outside of this one's, or comes once more, fills up.
        size, processes = self.args.eval_batch_size, self.accelerator.num_processes
        first = (self._eval_steps * processes + self.accelerator.process_index) * size
        self._eval_steps += 1
        kept, seen = [], set()
        for row in rows:
            number = row.get("row_number")
            if number is None or (first <= number < first + size and number not in seen):
                kept.append(row)
            seen.add(number)
        if not kept:
            return
        bare = self.accelerator.unwrap_model(model)
        if len(kept) < len(rows) and is_sharded(bare):
            return  # what is left of the batch would have to be computed by one process alone
        if len(kept) < len(rows):
            # By the bare model: the other processes take no part, and DistributedDataParallel would wait for them.
            rows, inputs = kept, self._prepare_inputs(self.data_collator(kept))
            outputs = self.compute_loss(bare, inputs, return_outputs=True)[1]
        self._measures.add(self.measure(bare, self.processor, rows, inputs, outputs))

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        self._measures, self._eval_steps = Measures(), 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        found = self._measures.result(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        # One process alone shows, which it cannot where the others hold parts of the model.
        shows = self.show is not None and self.on_shown is not None and self.is_world_process_zero()
        if shows and not is_sharded(self.model):
            self.on_shown(self.state.global_step, self._shown())
        return output

    def _shown(self) -> list[dict]:
        """What `show` says of the first rows, in batches of the evaluation's size."""
        model, was_training = self.accelerator.unwrap_model(self.model), self.model.training
        count, size, shown = min(self.shown, len(self.eval_dataset)), self.args.eval_batch_size, []
        with torch.no_grad():
            for start in range(0, count, size):
                rows = [self.eval_dataset[i] for i in range(start, min(start + size, count))]
                inputs = self._prepare_inputs(self.data_collator(rows))
                with self.compute_loss_context_manager():
                    shown += self.show(model.eval(), self.processor, rows, inputs)
        model.train(was_training)
        return shown


def rate_groups(model, rates: dict[str, float], default: float, weight_decay: float, decayed: set[str]) -> list[dict]:
    """
    The optimizer's groups: trainable parameters by learning rate, and in each those that decay apart from the others.

    Raises:
        ValueError: a pattern that finds no trainable parameter.
    """
    groups: dict[tuple[float, float], list] = {}
    used = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((pattern for pattern in rates if re.search(pattern, name)), None)
        used.add(pattern)
        key = (default if pattern is None else rates[pattern], weight_decay if name in decayed else 0.0)
        groups.setdefault(key, []).append(parameter)
    unused = [pattern for pattern in rates if pattern not in used]
    if unused:
        raise ValueError(f"`learning_rates` has patterns that find no trainable parameter: {unused}.")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
