"""OpenAI's API over the handler: `/v1/chat/completions` and `/v1/models`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from .door import Dialect, event_of
from .openai_requests import as_request, chat_models
from .own_route import text_stream, texts_of
from .streaming import TextStream
from .tickets import Ticket

# Kinds of errors as OpenAI's clients know them, by the handler's codes.
TYPES = {
    "unauthorized": "authentication_error", "too_many": "rate_limit_error", "overloaded": "server_error",
    "internal": "server_error", "interrupted": "server_error", "timed_out": "server_error",
}  # fmt: skip


def openai_dialect(handler) -> Dialect:
    """Chat completions, whole or as chunks."""

    def request(body, ticket: Ticket) -> dict:
        data = as_request(body, handler)
        options = body.get("stream_options") or {}
        ticket.facts = {
            "id": f"chatcmpl-{ticket.name}", "created": int(time.time()), "model": body["model"],
            "usage": isinstance(options, dict) and bool(options.get("include_usage")),
        }  # fmt: skip
        return data

    def answer(ticket: Ticket, given: dict) -> dict:
        choices = [
            {
                "index": row, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None,
                "finish_reason": reason,
            }
            for row, (text, reason) in enumerate(zip(texts_of(given), _reasons(given)))
        ]  # fmt: skip
        return _head(ticket, "chat.completion") | {"choices": choices, "usage": _usage(given)}

    def error(refused, name: str) -> dict:
        kind = TYPES.get(refused.code, "invalid_request_error")
        return {"error": {"message": refused.message, "type": kind, "param": None, "code": refused.code}}

    async def stream(ticket: Ticket, tokens) -> AsyncIterator[str]:
        head = _head(ticket, "chat.completion.chunk") | ({"usage": None} if ticket.facts["usage"] else {})
        rows: dict[int, TextStream] = {}

        def chunk(row: int, delta: dict, reason: str | None = None) -> str:
            choice = {"index": row, "delta": delta, "logprobs": None, "finish_reason": reason}
            return event_of(head | {"choices": [choice]})

        def opened(row: int) -> list[str]:
            if row in rows:
                return []
            rows[row] = text_stream(handler, ticket)
            return [chunk(row, {"role": "assistant", "content": ""})]

        async for row, token in tokens:
            for event in opened(row):
                yield event
            if piece := rows[row].feed(token):
                yield chunk(row, {"content": piece})
        given = ticket.future.result()
        for row, (text, reason) in enumerate(zip(texts_of(given), _reasons(given))):
            for event in opened(row):
                yield event
            if piece := rows[row].rest(text):
                yield chunk(row, {"content": piece})
            yield chunk(row, {}, reason)
        if ticket.facts["usage"]:
            yield event_of(head | {"choices": [], "usage": _usage(given)})
        yield event_of("[DONE]")

    return Dialect(request, answer, error, stream)


def model_list(handler, created: int) -> dict:
    """The models that chat."""
    models = [
        {"id": name, "object": "model", "created": created, "owned_by": "dsr-models"} for name in chat_models(handler)
    ]
    return {"object": "list", "data": models}


def _head(ticket: Ticket, kind: str) -> dict:
    facts = ticket.facts
    return {"id": facts["id"], "object": kind, "created": facts["created"], "model": facts["model"]}


def _rows(given: dict) -> list[tuple[list[int], bool]]:
    """Tokens of each answer, and whether it came to an end."""
    if "programs" in given:
        return list(zip(given["tokens"], given["finished"]))
    return [(one["tokens"], one["finished"]) for one in given.get("answers") or [given]]


def _reasons(given: dict) -> list[str]:
    return ["stop" if finished else "length" for _, finished in _rows(given)]


def _usage(given: dict) -> dict:
    """Tokens of the prompt, which several answers share, and of all answers, without those that end them."""
    written = sum(len(tokens) for tokens, _ in _rows(given))
    prompt = given["prompt_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
