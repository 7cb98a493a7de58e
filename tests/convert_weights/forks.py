"""Scripts that convert and are ended on the way, in forks of one process that has read the library."""

import json
import sys
import tempfile
from pathlib import Path

from tests.isolated import isolated

ROOT = Path(__file__).resolve().parents[2]
READY = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); import convert_weights, modeling_dsr, tests.convert_weights.toy; "
    "from tests import isolated; from tests.convert_weights import forks; isolated.serve(forks.run_job)"
)


def run_script(script: str, *arguments) -> tuple[int, str]:
    """Exit status, negative of a signal, and what was printed."""
    with tempfile.TemporaryDirectory(prefix="script-") as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"script": script, "arguments": list(map(str, arguments))}))
        return isolated("-c", READY).run(job)


def run_job(job: str) -> None:
    told = json.loads(Path(job).read_text())
    sys.argv = ["-c", *told["arguments"]]
    exec(told["script"], {"__name__": "__main__"})
