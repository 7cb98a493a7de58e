"""A cluster of Ray on this machine, for the tests of one module."""

import importlib
import logging
import os


def start():
    """Ray with two CPUs and no dashboard; what starts it shuts it down."""
    # By default Ray's workers have a lower priority than others: a busy machine then starts none in time.
    for name, value in {"RAY_worker_niceness": str(os.nice(0)), "RAY_raylet_start_wait_time_s": "300"}.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray
