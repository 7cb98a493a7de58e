"""Arguments of processors: what they hold, told where they cannot be read, and rows made of them."""

import functools
import inspect

import numpy as np
import torch


def refuses_unreadable(call):
    """
    A processor's `__call__` whose arguments of a wrong type or shape end in a ValueError that names them.

    What libraries raise deep inside for such arguments (TypeError, KeyError, …) is its cause.
    """

    @functools.wraps(call)
    def checked(self, *args, **kwargs):
        given = inspect.signature(call).bind(self, *args, **kwargs).arguments
        try:
            return call(self, *args, **kwargs)
        except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            found = [
                f"`{name}` {_describe(value)}" for name, value in given.items() if name != "self" and value is not None
            ]
            raise ValueError(
                f"{type(self).__name__} cannot read {', '.join(found) or 'nothing at all'} ({type(error).__name__}: "
                f"{error}). Its documentation says what each argument must be."
            ) from error

    return checked


def _describe(value) -> str:
    """Type and size of an argument, for a message."""
    if isinstance(value, (list, tuple)):
        return f"({type(value).__name__} of {len(value)}{f', first {_describe(value[0])}' if value else ''})"
    shape = getattr(value, "shape", None)
    return f"({type(value).__name__}{f' {list(shape)}' if shape is not None else ''})"


def per_sample(value, is_single, count: int | None, name: str) -> list:
    """One entry per sample of an argument that may be a single sample, a list or None."""
    if value is None:
        return [None] * (count or 0)
    entries = [value] if is_single(value) else list(value)
    if count is not None and len(entries) != count:
        raise ValueError(
            f"`{name}` has {len(entries)} entries, the batch has {count}; write None where a sample has none."
        )
    return entries


def pad_tokens(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    """int64 `[B, S]` of rows of ids."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), value, np.int64)
    for target, row in zip(padded, rows):
        start = padded.shape[1] - len(row) if side == "left" else 0
        target[start : start + len(row)] = row
    return torch.from_numpy(padded)


def per_row(value, rows: int, batched: bool, name: str) -> list:
    if value is None:
        return [None] * rows
    if not batched:
        return [value]
    if name == "text" and isinstance(value, str):
        return [value] * rows
    if len(value) != rows:
        raise ValueError(
            f"`{name}` has {len(value)} entries for {rows} images; with a list of images it needs one per image."
        )
    return list(value)
