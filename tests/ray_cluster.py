"""A cluster of Ray on this machine, for the tests of one module."""

import importlib
import logging
import os

# By default Ray's workers have a lower priority than others, and what does not start within half a minute ends it all:
# on a busy machine it takes more than one attempt.
PATIENCE = {
    "RAY_worker_niceness": "0",  # added to that of this process
    "RAY_raylet_start_wait_time_s": "120", "RAY_agent_register_timeout_ms": "600000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
}  # fmt: skip


def start(attempts: int = 4, cpus: int = 2):
    """Ray with no dashboard; what starts it shuts it down."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    for attempt in range(attempts):
        try:
            ray.init(address="local", num_cpus=cpus, **options)
            break
        except Exception:  # Ray has no class of its own for it
            ray.shutdown()
            if attempt == attempts - 1:
                raise
    return ray
