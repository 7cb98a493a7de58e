"""
The door that an Inference Endpoint opens: it puts the repository on the path and runs this file.

    handler = EndpointHandler("folder of the repository")
    handler({"task": "ask", "inputs": {"question": "…", "video": "<base64>"}, "parameters": {"max_new_tokens": 64}})

All it does is in the folder `endpoint` beside it.
"""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:  # an Endpoint has put it there; whoever opens this file by its path may not have
    sys.path.insert(0, HERE)

from endpoint import ERRORS, EndpointHandler, Limits, RequestError  # noqa: E402

__all__ = ["ERRORS", "EndpointHandler", "Limits", "RequestError"]
