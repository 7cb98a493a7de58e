"""The models in memory: loaded when first asked for, and given up by last use where room is short."""

from __future__ import annotations

import copy
import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import torch

logger = logging.getLogger(__name__)


class Residents:
    """
    Args:
        load: name -> model, on its device.
        max_models: in memory at a time; None: as many as are asked for.
        max_bytes: of their weights; None: no limit. A model that alone is larger is loaded all the same.
    """

    def __init__(self, load: Callable[[str], torch.nn.Module], max_models: int | None, max_bytes: int | None):
        for name, value in (("max_models", max_models), ("max_bytes", max_bytes)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.load, self.max_models, self.max_bytes = load, max_models, max_bytes
        self.loaded: dict[str, torch.nn.Module] = {}  # the least recently used one first
        self._in_use: Counter[str] = Counter()
        self._lock, self._loading = threading.Lock(), threading.RLock()

    def __len__(self) -> int:
        return len(self.loaded)

    def get(self, name: str) -> torch.nn.Module:
        with self._lock:
            if name in self.loaded:
                self.loaded[name] = self.loaded.pop(name)
                return self.loaded[name]
        with self._loading:  # one at a time, while others answer
            if name not in self.loaded:
                if self.max_models is not None:
                    self._make_room(self.max_models - 1, None)
                logger.info("loading %s", name)
                model = self.load(name)
                with self._lock:
                    self.loaded[name] = model
                self._make_room(None, self.max_bytes, keep=name)
            return self.loaded[name]

    @contextmanager
    def using(self, name: str):
        """Not given up meanwhile."""
        with self._lock:
            self._in_use[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[name] -= 1

    def _make_room(self, count: int | None, size: int | None, keep: str | None = None) -> None:
        """Give up the least recently used models until no more than `count`, of `size` bytes, are left."""
        given_up = 0
        with self._lock:
            for name in list(self.loaded):
                few = count is None or len(self.loaded) <= count
                small = size is None or sum(map(size_of, self.loaded.values())) <= size
                if few and small:
                    break
                if name != keep and not self._in_use[name]:
                    logger.info("giving up %s", name)
                    del self.loaded[name]
                    given_up += 1
        if given_up:
            gc.unfreeze()  # a server may have told the collector to leave models alone
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def size_of(model: torch.nn.Module) -> int:
    """Bytes of its weights; what several modules share counts once."""
    return sum(one.nbytes for one in {one.data_ptr(): one for one in model.parameters()}.values())


class Listeners:
    """
    Copies of processors for whoever follows an answer while it is written: the originals are busy with prompts, which
    change their tokenizers' state.
    """

    def __init__(self, original: Callable[[str], object]):
        self.original, self._copies, self._lock = original, {}, threading.Lock()

    def get(self, name: str):
        with self._lock:
            if name not in self._copies:
                self._copies[name] = copy.copy(self.original(name))
                self._copies[name].tokenizer = copy.deepcopy(self.original(name).tokenizer)
            return self._copies[name]
