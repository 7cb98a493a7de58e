"""Reads known cameras from the paths on stdin, each in a process of its own with a limit of time and memory, and prints
a line of JSON for each: what happened."""

import json
import os
import resource
import signal
import sys

import modeling_dsr.pose  # noqa: F401  torch, which trajectories need: once, and not in every child
from dsr_toolkit.reconstruction.known import read_cameras

SECONDS, BYTES = 20, 8 << 30  # of the processor: a busy machine ends nothing


def read(path: str) -> tuple[str, str]:
    try:
        known = read_cameras(path)
    except ValueError as error:
        return "refused", str(error)
    except BaseException as error:
        return "error", f"{type(error).__name__}: {error}"
    cameras = [*known.by_name.items(), *known.by_time, *enumerate(known.by_order)]
    poses = [[str(key), None if camera.pose is None else camera.pose.tolist()] for key, camera in cameras]
    k = [None if camera.intrinsics is None else camera.intrinsics.tolist() for _, camera in cameras]
    return "read", json.dumps(sorted(map(str, zip(poses, k))))


def main() -> None:
    for path in sys.stdin.read().splitlines():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(15 * SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(writer, json.dumps(read(path)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            told = file.read()
        _, status = os.waitpid(child, 0)
        outcome = (
            json.loads(told) if told and not status else ("died", f"status {status} (9, 14 and 24 are limits of time)")
        )
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
