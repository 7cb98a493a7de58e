"""What a server is told, in plain values: they come from a command line, a file, or another process."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Settings:
    """
    Args:
        model: a repository, folder or Hub name. device, dtype, allow_missing: of its handler.
        limits: of a request, by name. max_models, max_model_bytes: in memory at a time.
        preload: models to load before the server is ready.
        max_batch, max_wait, max_requests, workers: of the queue.
        time_limit: seconds that an answer may take. read_timeout: seconds within which a request has to come.
        stop_limit: seconds after which a stopping server gives up what it has accepted.
        body_memory: bytes of bodies at a time, of all requests that are being read.
        per_client: requests that one key (or address) may have on their way; None: any number.
        keys_file: of API keys; default the environment's DSR_API_KEYS. cors: origins whose pages may ask.
    """

    model: str
    device: str | None = None
    dtype: str = "auto"
    allow_missing: str | tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    max_models: int | None = None
    max_model_bytes: int | None = None
    preload: tuple[str, ...] = ()
    max_batch: int = 16
    max_wait: float = 0.02
    max_requests: int = 64
    workers: int = 4
    time_limit: float = 300.0
    read_timeout: float = 20.0
    stop_limit: float = 30.0
    body_memory: int = 2**29
    per_client: int | None = None
    keys_file: str | None = None
    cors: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("time_limit", "read_timeout", "stop_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0 seconds, got {getattr(self, name)}.")
        if self.body_memory < 1:
            raise ValueError(f"`body_memory` must be at least 1, got {self.body_memory}.")

    @classmethod
    def of(cls, given: dict) -> Settings:
        """Of plain values; a name that is none of a setting is an error."""
        known = [one.name for one in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"unknown settings {unknown}; there are {', '.join(known)}.")
        return cls(**given)
