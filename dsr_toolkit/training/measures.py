"""Figures over a data set of which only numbers per sample are kept and gathered, never outputs."""

import statistics


class Measures:
    """Numbers per sample, or pairs (numerator, denominator), by name."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}
        self.ratios: dict[str, list[float]] = {}

    def add(self, found: dict) -> None:
        """See `measure` of [`Stage`]."""
        for name, value in found.items():
            if isinstance(value, tuple):
                total = self.ratios.setdefault(name, [0.0, 0.0])
                total[0] += float(value[0])
                total[1] += float(value[1])
            else:
                self.values.setdefault(name, []).extend(float(number) for number in value)

    def result(self, accelerator=None) -> dict[str, float]:
        """One figure per name, over all processes."""
        parts = [self]
        if accelerator is not None and accelerator.num_processes > 1:
            import torch.distributed as distributed

            parts = [None] * accelerator.num_processes
            distributed.all_gather_object(parts, self)
        whole = Measures()
        for part in parts:
            whole.add(part.values)
            whole.add({name: tuple(pair) for name, pair in part.ratios.items()})
        figures = {name: top / bottom for name, (top, bottom) in whole.ratios.items() if bottom}
        for name, numbers in whole.values.items():
            if numbers:
                middle = statistics.median if name.endswith("_median") else statistics.fmean
                figures[name] = middle(numbers)
        return figures
