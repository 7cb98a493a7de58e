"""Spans of OpenTelemetry, where its interface is installed; else nothing happens."""

from __future__ import annotations

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
    """A stage of a request, in whatever thread it runs."""
    context = getattr(ticket, "context", None)
    if trace is None or context is None:
        return nullcontext()
    named = {f"dsr.{name}": value for name, value in attributes.items()}
    return trace.get_tracer(TRACER).start_as_current_span(
        stage, context=context, attributes=named, record_exception=False, set_status_on_exception=False
    )
