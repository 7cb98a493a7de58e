"""What of a model trains: named presets, kept in its configuration and applied again whenever it is loaded."""

import re
from typing import Self

from torch import nn


class FreezePresets:
    """
    `model.freeze(preset)` for a [`PreTrainedModel`]; put it before that class among the bases.

    Parameters are told apart by name alone, so that it works on a model whose code came from the Hub, too. Loading
    makes every parameter trainable in transformers; here the preset that the configuration holds is applied after it.

    Attributes:
        freeze_presets: preset -> regular expression of the names that train.
        default_freeze: the preset of a configuration that names none.
        freeze_field: the field of the configuration that keeps the preset.
    """

    freeze_presets: dict[str, str] = {"all": ""}
    default_freeze = "all"
    freeze_field = "freeze"

    def idle_parameters(self) -> list[str]:
        """
        Regular expressions of parameters that no forward pass uses, or that no loss of this configuration reaches. They
        never train: an optimizer would only decay them, and DistributedDataParallel waits for their gradients.
        """
        return [r"(.*\.)?embeddings\.mask_token"]  # used by DINO's own training alone

    def freeze(self, preset: str | None = None) -> Self:
        """
        Choose what trains, and keep the choice in the configuration.

        Args:
            preset: one of `freeze_presets`; None: the one that the configuration has.

        Returns:
            The model.

        Raises:
            ValueError: no such preset, or one that trains nothing that the loss reaches.
        """
        if preset is None:
            preset = getattr(self.config, self.freeze_field, None) or self.default_freeze
        else:
            self._check_preset(preset)
            setattr(self.config, self.freeze_field, preset)
        self._check_preset(preset)
        trains, idle = re.compile(self.freeze_presets[preset]), re.compile("|".join(self.idle_parameters()) or "(?!)")
        reached = 0
        for name, parameter in self.named_parameters():
            wanted = trains.match(name) is not None and idle.fullmatch(name) is None
            reached += wanted
            if parameter.is_floating_point():  # quantised weights have no gradient
                parameter.requires_grad_(wanted)
        if not reached:
            raise ValueError(
                f"The preset {preset!r} of {type(self).__name__} trains nothing that a loss reaches. "
                f"{self.idle_reason()}"
            )
        return self

    def idle_reason(self) -> str:
        """What to do about a preset that trains nothing."""
        return "Choose another preset."

    def _check_preset(self, preset: str) -> None:
        if preset not in self.freeze_presets:
            known = ", ".join(map(repr, self.freeze_presets))
            raise ValueError(f"`preset` of {type(self).__name__} must be one of {known}, got {preset!r}.")

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in [`PreTrainedModel`], which makes every loaded parameter trainable; the preset is applied again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model: nn.Module = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze()
        return loaded
