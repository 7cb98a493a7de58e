"""Conversations: turns of text with images or a video in them, checked, as chat templates take them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .request import Limits, RequestError, shown_value

ROLES = ("system", "user", "assistant")
PARTS = ("text", "image", "video")


@dataclass
class Conversation:
    """
    Args:
        turns: for a chat template, with places for media. texts: what was said, to be checked.
        images: files by what errors call them, in the order of their places. video: name and file of the only one.
    """

    turns: list[dict] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    images: dict[str, str | bytes] = field(default_factory=dict)
    video: tuple[str, str | bytes] | None = None

    @classmethod
    def question(cls, question: str, video: tuple[str, str | bytes] | None, images: list) -> Conversation:
        """One turn that asks about one video or some images."""
        media = [{"type": "image"} for _ in images] or [{"type": "video"}]
        turn = {"role": "user", "content": [*media, {"type": "text", "text": question}]}
        named = {f"inputs.images[{number}]": image for number, image in enumerate(images)}
        return cls([turn], [question], named, video)

    @classmethod
    def read(cls, name: str, turns: list[dict], limits: Limits) -> Conversation:
        """Turns of a request."""
        talk = cls()
        for number, turn in enumerate(turns):
            place = f"{name}[{number}]"
            role, content = turn.get("role"), turn.get("content")
            if role not in ROLES:
                raise RequestError(
                    "bad_request", f"`{place}.role` must be of {', '.join(ROLES)}, got {shown_value(role)}."
                )
            if unknown := [str(key)[:80] for key in turn if key not in ("role", "content")]:
                raise RequestError(
                    "bad_request", f"`{place}` has unknown fields {unknown[:5]}; there are role, content."
                )
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                raise RequestError("bad_request", f"`{place}.content` must be a text or a list of parts.")
            read = [talk._part(f"{place}.content[{at}]", part, limits) for at, part in enumerate(parts)]
            talk.turns.append({"role": role, "content": read})
        if not talk.turns or talk.turns[-1]["role"] != "user":
            raise RequestError("bad_request", f"`{name}` must end with a turn of the user.")
        if not any(part.get("text", "").strip() for part in talk.turns[-1]["content"]):
            raise RequestError("bad_request", f"`{name}` asks nothing: its last turn has no text.")
        if talk.video is not None and talk.images:
            raise RequestError(
                "invalid_input", f"`{name}` holds a video and images; the model reads one kind at a time."
            )
        return talk

    def _part(self, place: str, part: dict, limits: Limits) -> dict:
        kind = part.get("type")
        if kind not in PARTS:
            raise RequestError("bad_request", f"`{place}.type` must be of {', '.join(PARTS)}, got {shown_value(kind)}.")
        value = part.get(kind)
        if not isinstance(value, str if kind == "text" else (str, bytes, bytearray)):
            raise RequestError("bad_request", f"`{place}.{kind}` must be a {'text' if kind == 'text' else 'file'}.")
        if kind == "text":
            if sum(map(len, self.texts)) + len(value) > limits.text:
                raise RequestError("too_large", f"`{place}` makes the texts longer than {limits.text} characters.")
            self.texts.append(value)
            return {"type": "text", "text": value}
        if kind == "image":
            self.images[f"{place}.image"] = value
        elif self.video is not None:
            raise RequestError("invalid_input", f"`{place}` is a second video; the model is asked about one.")
        else:
            self.video = (f"{place}.video", value)
        return {"type": kind}
