"""Spans of OpenTelemetry, where its interface is installed; else nothing happens."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext

try:
    from opentelemetry import propagate, trace
except ImportError:
    propagate = trace = None

TRACER = "dsr_toolkit.serving"


@contextmanager
def request_span(ticket, headers: dict[str, str]):
    """A request's span, without contents: below the framework's where it makes one, else below that of its client."""
    if trace is None:
        yield
        return
    above = None if trace.get_current_span().get_span_context().is_valid else propagate.extract(headers)
    # It does not become the current one of its task: an answer that streams ends in another.
    span = trace.get_tracer(TRACER).start_span("request", context=above)
    ticket.context = trace.set_span_in_context(span)
    span.set_attribute("dsr.request", ticket.name)
    try:
        yield
    finally:
        span.set_attribute("dsr.task", ticket.task)
        span.set_attribute("dsr.model", ticket.model)
        span.end()


def stage_span(ticket, stage: str, **attributes):
    """A stage of a request, in whatever thread it runs; where its trace is another process's, noted for that one."""
    named = {f"dsr.{name}": value for name, value in attributes.items()}
    if getattr(ticket, "stages", None) is not None:
        return _noted(ticket.stages, stage, named)
    context = getattr(ticket, "context", None)
    if trace is None or context is None:
        return nullcontext()
    return trace.get_tracer(TRACER).start_as_current_span(
        stage, context=context, attributes=named, record_exception=False, set_status_on_exception=False
    )


@contextmanager
def _noted(stages: list, stage: str, attributes: dict):
    start = time.time_ns()
    try:
        yield
    finally:
        stages.append((stage, start, time.time_ns(), attributes))


def past_spans(ticket, stages: list[tuple[str, int, int, dict]]) -> None:
    """Stages that another process noted (name, begin and end in ns of its clock, attributes), as spans of a request."""
    if trace is None or ticket.context is None:
        return
    for stage, start, end, attributes in stages:
        span = trace.get_tracer(TRACER).start_span(stage, ticket.context, attributes=attributes, start_time=start)
        span.end(end)
