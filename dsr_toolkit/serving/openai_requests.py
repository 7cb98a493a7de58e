"""OpenAI's chat completions as requests of the handler: what may be said, and what it means here."""

from __future__ import annotations

import secrets

from . import handler_module

# Fields that say what is so anyway, and their values that do.
NEUTRAL = {
    "frequency_penalty": (0, None), "presence_penalty": (0, None), "logprobs": (False, None), "top_logprobs": (0, None),
    "logit_bias": ({}, None), "response_format": ({"type": "text"}, None), "tools": ([], None),
    "tool_choice": ("none", None), "modalities": (["text"], None), "store": (False, None),
}  # fmt: skip
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # say nothing about the answer
USED = (
    "model", "messages", "stream", "stream_options", "n", "temperature", "top_p", "seed", "stop", "max_tokens",
    "max_completion_tokens",
)  # fmt: skip
CHAT_TYPES = {"dsr": "ask", "cadrille": "cad", "cad_recode": "cad"}  # model type -> task
SEEDS = 2**53


def chat_models(handler) -> dict[str, str]:
    """Task by name of the models that chat."""
    return {name: CHAT_TYPES[kind] for name, kind in handler.models.items() if kind in CHAT_TYPES}


def refuse(message: str, code: str = "bad_request") -> Exception:
    return handler_module().RequestError(code, message)


def as_request(body, handler) -> dict:
    """
    The handler's request for the body of a chat completion.

    Raises:
        RequestError: for what is not understood; no wish is silently left out.
    """
    if not isinstance(body, dict):
        raise refuse("a request must be a JSON object.")
    for name, value in body.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise refuse(f"`{str(name)[:80]}` is not supported; leave it out.")
        if name not in (*NEUTRAL, *IGNORED, *USED):
            raise refuse(f"`{str(name)[:80]}` is not known; there are {', '.join(USED)}.")
    models = chat_models(handler)
    model = body.get("model")
    if not isinstance(model, str) or model not in models:
        shown = model[:80] if isinstance(model, str) else model and type(model).__name__
        raise refuse(f"`model` must be one of {', '.join(models)}, got {shown!r}.", "unknown_task")
    task = models[model]
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise refuse("`messages` must be a list of messages.")
    turns = [_turn(f"messages[{number}]", message) for number, message in enumerate(messages)]
    inputs = {"messages": turns} if task == "ask" else _part_of_cad(turns)
    request = {"task": task, "inputs": inputs, "parameters": _parameters(body, task, model, handler.limits)}
    if body.get("stream") is not None:
        request["stream"] = body["stream"]
    return request


def _parameters(body: dict, task: str, model: str, limits) -> dict:
    count, temperature = body.get("n"), body.get("temperature")
    length = body.get("max_completion_tokens")
    length = body.get("max_tokens") if length is None else length
    stop = body.get("stop")
    seed = body.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed %= SEEDS
    several = isinstance(count, int) and count > 1
    if temperature is None:
        temperature = 1.0 if several else 0.0  # several answers of no temperature would all be the same
    sampled = temperature != 0
    parameters = {
        "model": model, "candidates": count, "top_p": body.get("top_p"),
        "max_new_tokens": limits.new_tokens if length is None else length,
        "stop": [stop] if isinstance(stop, str) else stop,
        "seed": secrets.randbelow(SEEDS) if seed is None and sampled else seed,
        "temperature": temperature,
    }  # fmt: skip
    if task == "cad":
        parameters["likeliest"] = not sampled
        if not sampled:
            del parameters["temperature"]  # only the likeliest program is asked for
            if several:
                raise refuse("`n` above 1 needs a `temperature`: without it all answers are the same.")
    return {name: value for name, value in parameters.items() if value is not None}


def _turn(place: str, message: dict) -> dict:
    """A turn as the task `ask` takes it."""
    known = ("role", "content", "name", "refusal", "annotations", "audio", "function_call", "tool_calls")
    for name, value in message.items():
        if name not in known or (value is not None and name not in ("role", "content", "name", "annotations")):
            raise refuse(f"`{place}.{str(name)[:80]}` is not supported.")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if isinstance(content, list):
        content = [_part(f"{place}.content[{number}]", part) for number, part in enumerate(content)]
    return {"role": role, "content": content}


def _part(place: str, part) -> dict:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part.get("text")}
    if kind == "image_url":
        return {"type": "image", "image": _data_url(f"{place}.image_url", part.get("image_url"))}
    if kind in ("video_url", "input_video"):
        return {"type": "video", "video": _data_url(f"{place}.{kind}", part.get(kind))}
    if kind == "file":
        return {"type": "file", "file": _data_url(f"{place}.file", part.get("file"))}
    raise refuse(f"`{place}.type` must be of text, image_url, video_url, input_video, file.")


def _data_url(place: str, given):
    """The file of a data URL; bytes where the parser has unpacked it."""
    if isinstance(given, dict):
        name = next((name for name in ("url", "data", "file_data") if given.get(name) is not None), "url")
        place, given = f"{place}.{name}", given.get(name)
    if isinstance(given, (bytes, bytearray)):
        return given
    if not isinstance(given, str) or not (given[:5].lower() == "data:" or place.endswith(".data")):
        raise refuse(f"`{place}` must be a data URL, data:image/png;base64,…: nothing is fetched from an address.")
    return given


def _part_of_cad(turns: list[dict]) -> dict:
    """Inputs of the task `cad` of one message: a text, pictures, or a file of points or of a mesh."""
    if len(turns) != 1 or turns[0]["role"] != "user":
        raise refuse("a CAD model takes one message of the user: it knows no conversation and no system message.")
    content = turns[0]["content"]
    if isinstance(content, str):
        return {"text": content}
    if not isinstance(content, list) or not content:
        raise refuse("`messages[0].content` must be a text or a list of parts.")
    by_kind: dict[str, list] = {}
    for part in content:
        by_kind.setdefault(part["type"], []).append(part[part["type"]])
    if "video" in by_kind:
        raise refuse("a CAD model reads text, images or a file, not a video.", "invalid_input")
    texts = [text for text in by_kind.pop("text", []) if not isinstance(text, str) or text.strip()]
    if len(by_kind) + bool(texts) != 1 or len(texts) > 1:
        raise refuse("a CAD model takes either one text, or images, or one file (STL or .npy) in a message.")
    if texts:
        return {"text": texts[0]}
    if "image" in by_kind:
        return {"images": by_kind["image"]}
    if len(by_kind["file"]) != 1:
        raise refuse("a CAD model takes one file.")
    (file,) = by_kind["file"]
    return {"points" if _is_npy(file) else "stl": file}


def _is_npy(file) -> bool:
    if isinstance(file, str):
        return file.partition(",")[2].lstrip().startswith("k05VTVBZ")  # \x93NUMPY in base64
    return bytes(file[:6]) == b"\x93NUMPY"
