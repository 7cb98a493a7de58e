"""What a server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SIZES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
# prepare: until the model may have it. wait: for the model. run: of its batch. finish: what becomes of the result.
# first_token: from arrival.
STAGES = ("prepare", "wait", "run", "finish", "first_token")


class Metrics:
    """Counters of one [`Admission`], in a registry of their own."""

    def __init__(self, queue):
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "dsr_requests", "requests that came to an end", ["task", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            "dsr_request_seconds", "from arrival to answer", ["task"], registry=self.registry, buckets=SECONDS
        )
        self._stages = Histogram(
            "dsr_stage_seconds", f"of requests in {', '.join(STAGES)}", ["task", "stage"], registry=self.registry,
            buckets=(0.001, 0.003, *SECONDS),
        )  # fmt: skip
        self._refused = Counter("dsr_refused", "requests that were not accepted", ["code"], registry=self.registry)
        self._calls = Counter("dsr_model_calls", "batches that a model ran", ["task"], registry=self.registry)
        self._busy = Counter("dsr_model_seconds", "that a model was busy", ["task"], registry=self.registry)
        self._sizes = Histogram(
            "dsr_batch_requests", "requests in a batch", ["task"], buckets=SIZES, registry=self.registry
        )
        for name, (about, value) in queue.gauges().items():
            Gauge(name, about, registry=self.registry).set_function(value)

    def ended(self, ticket, code: str, seconds: float) -> None:
        self._requests.labels(ticket.task, code).inc()
        self._seconds.labels(ticket.task).observe(seconds)
        for stage in STAGES:
            if stage in ticket.seconds:
                self._stages.labels(ticket.task, stage).observe(ticket.seconds[stage])

    def refused(self, code: str) -> None:
        """Of a request that never came to the queue."""
        self._refused.labels(code).inc()

    def ran(self, task: str, requests: int, seconds: float) -> None:
        self._calls.labels(task).inc()
        self._busy.labels(task).inc(seconds)
        self._sizes.labels(task).observe(requests)

    def value(self, name: str, **labels) -> float:
        """A sample by its full name, `dsr_model_calls_total`; 0 where nothing was counted yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def text(self) -> bytes:
        return generate_latest(self.registry)
