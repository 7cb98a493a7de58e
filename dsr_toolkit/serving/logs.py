"""Logs of a server: lines for people, or JSON for machines; neither holds anything of what a request contained."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import uuid

# What a record may carry beside its message.
FIELDS = ("request", "client", "path", "status", "code", "task", "model", "seconds", "bytes")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def where(error: BaseException) -> str:
    """Kind of an error and where it came from, without its message: that may quote the request."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    return " < ".join([type(error).__name__, *places])


def request_id(given: str | None) -> str:
    """The client's own name for its request where it is a plain one, else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class JsonLines(logging.Formatter):
    """An object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        line |= _fields(record)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = where(record.exc_info[1])
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{time.strftime('%H:%M:%S')} {record.levelname:7} {record.getMessage()}"
        text += "".join(f" {name}={value}" for name, value in _fields(record).items())
        if record.exc_info and record.exc_info[1] is not None:
            text += f" error={where(record.exc_info[1])}"
        return text


def _fields(record: logging.LogRecord) -> dict:
    return {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}


def set_up(form: str) -> None:
    """Send the server's log to standard error, as `form`: "text" or "json"."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonLines() if form == "json" else PlainLines())
    for name in ("dsr_toolkit", "dsr_endpoint", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [output], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").handlers = []
    logging.getLogger("uvicorn.error").propagate = True
