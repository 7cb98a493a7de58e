"""The server's own route: JSON as the handler takes it, answered whole, or streamed with `"stream": true`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from . import handler_module
from .door import Dialect, event_of
from .streaming import TextStream
from .tickets import Ticket


def own_dialect(handler) -> Dialect:
    """Requests and answers are the handler's own."""

    def request(data, ticket: Ticket) -> dict:
        if isinstance(data, dict) and data.get("stream") and data.get("task") not in (None, *STREAMING):
            raise handler_module().RequestError("bad_request", f"`stream` is for the tasks {', '.join(STREAMING)}.")
        return data

    def error(refused, name: str) -> dict:
        return {"error": {**refused.as_json()["error"], "request": name}}

    async def stream(ticket: Ticket, tokens) -> AsyncIterator[str]:
        rows: dict[int, TextStream] = {}
        async for row, token in tokens:
            if row not in rows:
                rows[row] = text_stream(handler, ticket)
            if piece := rows[row].feed(token):
                yield event_of({"row": row, "text": piece})
        answer = ticket.future.result()
        for row, text in enumerate(texts_of(answer)):
            if row in rows and (piece := rows[row].rest(text)):
                yield event_of({"row": row, "text": piece})
        yield event_of({"answer": answer})
        yield event_of("[DONE]")

    return Dialect(request, lambda ticket, answer: answer, error, stream)


STREAMING = ("ask", "cad", "segment", "scene")


def text_stream(handler, ticket: Ticket) -> TextStream:
    """Of a row of a request that is being answered."""
    task, model, parameters = ticket.task, ticket.model, ticket.parameters
    return TextStream(
        lambda tokens: handler.text_so_far(task, model, tokens, parameters), tuple(parameters.get("stop") or ())
    )


def texts_of(answer) -> list[str]:
    """The texts of an answer, by row."""
    if isinstance(answer, list):
        return [one["generated_text"] for one in answer]
    if "programs" in answer:
        return answer["programs"]
    if "answers" in answer:
        return [one["answer"] for one in answer["answers"]]
    return [answer["answer"]] if "answer" in answer else []
