"""Who may ask, and how much at a time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

from . import handler_module

VARIABLE = "DSR_API_KEYS"


class Keys:
    """
    The keys that a server takes; without any it takes every request.

    Args:
        keys: name -> key. Only their digests are kept.
    """

    def __init__(self, keys: Mapping[str, str] | None = None):
        self._digests = {name: _digest(key) for name, key in (keys or {}).items()}

    @classmethod
    def read(cls, file: str | None = None) -> Keys:
        """
        Of a file, or else of the environment's DSR_API_KEYS: one per line or after a comma, `name:key` or `key`.

        Raises:
            ValueError: the file cannot be read or holds no key.
        """
        if file is None:
            text, place = os.environ.get(VARIABLE, ""), VARIABLE
        else:
            place = f"--api-keys {file}"
            try:
                text = Path(file).read_text(encoding="utf-8-sig")
            except OSError as error:
                raise ValueError(f"{place} cannot be read: {error.strerror}.") from error
        lines = [line.strip() for line in text.replace(",", "\n").splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if file is not None and not lines:
            raise ValueError(f"{place} holds no key; it wants one per line, `name:key` or `key`.")
        keys = {}
        for number, line in enumerate(lines, 1):
            name, colon, key = line.partition(":")
            name, key = (name, key) if colon else (f"key-{number}", line)
            if len(key) < 8 or name in keys:
                raise ValueError(f"{place}, entry {number}: names must differ, and keys have at least 8 characters.")
            keys[name] = key
        return cls(keys)

    def __len__(self) -> int:
        return len(self._digests)

    def client(self, headers: Mapping[str, str], address: str) -> str:
        """
        Name of the key in `Authorization: Bearer …` or `X-API-Key`; the address where no keys are wanted.

        Every key is compared in full, in constant time.

        Raises:
            RequestError: "unauthorized".
        """
        if not self._digests:
            return address
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest, found = _digest(given), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        if found is None:
            raise handler_module().RequestError("unauthorized", "send a key: `Authorization: Bearer KEY`.")
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Shares:
    """How many requests each client has on their way; `most` is None for any number."""

    def __init__(self, most: int | None):
        if most is not None and most < 1:
            raise ValueError(f"`per_client` must be at least 1, got {most}.")
        self.most, self._count = most, Counter()

    @contextmanager
    def one(self, client: str):
        """
        Raises:
            RequestError: "too_many".
        """
        if self.most is not None and self._count[client] >= self.most:
            raise handler_module().RequestError(
                "too_many", f"you have {self._count[client]} requests on their way; at most {self.most} are taken."
            )
        self._count[client] += 1
        try:
            yield
        finally:
            self._count[client] -= 1
            if not self._count[client]:
                del self._count[client]
