"""
The door that an Inference Endpoint opens: it puts the repository on the path and runs this file.

    handler = EndpointHandler("folder of the repository")
    handler({"task": "ask", "inputs": {"question": "…", "video": "<base64>"}, "parameters": {"max_new_tokens": 64}})

All it does is in the folder `endpoint` beside it.
"""

from endpoint import ERRORS, EndpointHandler, Limits, RequestError

__all__ = ["ERRORS", "EndpointHandler", "Limits", "RequestError"]
