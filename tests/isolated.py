"""Workers that cannot import the source tree: forks of one process that has read torch and transformers, and nothing
else. Reading them takes longer than most of what the workers do."""

import atexit
import os
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path


class Isolated:
    """
    A process started from `/`, without the source tree on its path, that runs jobs with [`serve`]. Every job has a hub
    and a code cache of its own: the libraries look where they lie when they are imported, so it is a link that leads to
    the job's folder.

    Args:
        arguments: of Python.
    """

    def __init__(self, *arguments: str):
        self.folder = tempfile.TemporaryDirectory(prefix="isolated-")
        self.link = Path(self.folder.name) / "current"
        env = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")
        }
        env |= {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(self.link / "hub"),
            "HF_MODULES_CACHE": str(self.link / "modules"),
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            cwd="/",
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Path) -> tuple[int, str]:
        """Exit status, negative of a signal, and what was printed by a fork that did the job."""
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(job.parent)
        log = job.with_name("log.txt")
        log.unlink(missing_ok=True)
        print(job, file=self.process.stdin, flush=True)
        status = self.process.stdout.readline()
        assert status, "the process that forks has ended"
        return int(status), log.read_text(errors="replace")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()


@cache
def isolated(*arguments: str) -> Isolated:
    """The one of this process for these arguments."""
    started = Isolated(*arguments)
    atexit.register(started.close)
    return started


def serve(body) -> None:
    """In that process: `body(job)` in a fork for each line that comes in; its exit status goes out."""
    for line in sys.stdin:
        job = line.strip()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                log = os.open(Path(job).with_name("log.txt"), os.O_WRONLY | os.O_CREAT, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                body(job)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
