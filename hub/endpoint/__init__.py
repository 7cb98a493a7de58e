"""
The repository behind an endpoint: JSON in, JSON out, for every model in it.

    handler = EndpointHandler("folder of the repository")
    handler({"task": "ask", "inputs": {"question": "…", "video": "<base64>"}, "parameters": {"max_new_tokens": 64}})

`task` chooses what to do, see `TASKS`: ask, reconstruct, segment, cad, scene. Files come as base64 text (or as bytes,
from Python); nothing is ever fetched from an address or read from a path that a request names. What is wrong with a
request is a [`RequestError`] with an HTTP status and a code; see `ERRORS`. Without `temperature` answers are greedy;
with it they follow from `seed` alone, whatever else is answered at the same time.

A request without `task` is a widget's, and answered as a pipeline answers; see `widget`.

A server calls the three steps itself: `prepare` (any thread), `run` (takes all jobs of one `Job.key` at once), `finish`
(any thread). One thread computes at a time; `EndpointHandler.pause`, which is called between two tokens, may let
another `run` go on meanwhile. A job's `Listener` hears its tokens, and may give it up.

This folder stands alone: beside the repository's own code it needs torch, transformers, numpy, pillow and, for videos,
av. Running CAD programs (`execute`) needs this library's toolkit with its sandbox; where it is not installed, programs
are returned as text, and `execute` is refused.
"""

from .models import TASKS, EndpointHandler
from .request import ERRORS, KINDS, Field, Limits, RequestError

__all__ = ["ERRORS", "KINDS", "TASKS", "EndpointHandler", "Field", "Limits", "RequestError"]
