"""
What runs, and what names its extra, where only ordinary requirements are installed. Needs no more than those itself.

    python -P tests/bare.py commands              every `dsr` command, in the working directory
    python -P tests/bare.py promised FOLDER       whether everything is there that `dsr demo` names
    python -m tests.bare prepare FOLDER           a repository of tiny models, and requests to its endpoint
    python -P tests/bare.py endpoint FOLDER       every task of its handler, where no source tree is in reach
    python -P tests/bare.py app FOLDER            every tab of its page; without gradio, what it says

`commands` is for an environment made of `pip install .` or of a wheel, `endpoint` and `app` for one made of
`hub/requirements.txt`. Prints a line per case; the exit status is 1 if any went wrong.
"""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SOURCE_MODULES = ("configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit", "tests")


class Failure(Exception):
    """A case that went wrong, and how."""


def check(condition, *shown) -> None:
    if not condition:
        raise Failure("\n".join(map(str, shown)))


def run_cases(cases: dict) -> int:
    """Call each, print a line about it; returns the number of failures."""
    failures = 0
    for name, case in cases.items():
        start = time.perf_counter()
        try:
            said = case()
        except Exception as error:  # a case must not keep the others from running
            failures += 1
            said = f"FAILED: {error if isinstance(error, Failure) else repr(error)}"
        print(f"{name:24} {time.perf_counter() - start:5.1f} s  {said}", flush=True)
    return failures


# --------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------


QUESTIONS = {
    "dsr-bench": {"videoID": "clip", "question": "Where?", "options": ["A. left", "B. right"], "answer": "B"},
    "vlm4d": {
        "id": "1", "video": "clip.mp4", "question": "Where", "choices": {"A": "left", "B": "right"}, "answer": "right",
        "question_type": "multiple-choice",
    },
    "sti-bench": {
        "ID": 1, "Video": "clip.mp4", "Task": "Speed", "time_start": 1, "time_end": 3, "Question": "How fast?",
        "Candidates": {"A": "1 m/s", "B": "2 m/s"}, "Answer": "B",
    },
    "vsi-bench": {
        "id": 1, "dataset": "set", "scene_name": "clip", "question_type": "direction", "question": "Where is it?",
        "options": ["A. left", "B. right"], "ground_truth": "B",
    },
}  # fmt: skip


def dsr(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "dsr_toolkit.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def works(*arguments, files: tuple = ()):
    """The command ends well and these files are there."""

    def case() -> str:
        done = dsr(*arguments)
        check(done.returncode == 0, f"exit status {done.returncode}", done.stdout, done.stderr)
        missing = [str(file) for file in files if not Path(file).is_file() or not Path(file).stat().st_size]
        check(not missing, "promised and not there:", *missing)
        return "works"

    return case


def names(extra: str, *arguments):
    """The command says which extra it needs, and nothing else: it has done no work before."""

    def case() -> str:
        done = dsr(*arguments)
        lines = done.stderr.strip().splitlines()
        check(done.returncode == 2 and len(lines) == 1 and not done.stdout, done.returncode, done.stdout, done.stderr)
        check(f"[{extra}]" in lines[0], f"does not name the extra [{extra}]:", lines[0])
        return f"names [{extra}]"

    return case


def write_clip(path: Path) -> None:
    """Four small frames."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for shade in (40, 90, 140, 190):
            pixels = np.full((84, 112, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def demo(folder: Path):
    """The README's first command: it comes to its end and leaves what it promises."""

    def case() -> str:
        works("demo", "-o", folder)()
        return promised(folder)

    return case


def promised(folder: Path) -> str:
    """Every section of a demo has the files that it names, names the extra that it wants, or has no model yet."""
    report = json.loads((folder / "demo.json").read_text())
    shown, left_out = [], []
    written = report.pop("files")
    check("overview.png" in written, "the demo has no overview.png")
    check(written and all((folder / name).is_file() for name in written), "the demo", sorted(written)[:3])
    for section, told in report.items():
        if "not_trained" in told:
            left_out.append(f"{section} ({told['not_trained']})")
            continue
        if "skipped" in told:
            check("[" in told["skipped"], f"{section} is left out and names no extra: {told['skipped']}")
            left_out.append(f"{section} ({told['skipped']})")
            continue
        files = [folder / section / told[name] for name in ("picture", "page", "scene") if name in told]
        check(files and all(file.is_file() and file.stat().st_size for file in files), section, files)
        shown.append(section)
    check(shown, "nothing is shown")
    return f"works: {', '.join(shown)}; left out: {', '.join(left_out) or 'nothing'}"


def commands() -> dict:
    """Cases by name; every command and every task of `eval` has one."""
    import numpy as np
    from PIL import Image

    from dsr_toolkit.cli import COMMANDS, build_parser
    from dsr_toolkit.commands.eval import TASKS
    from dsr_toolkit.demo.clip import CLIP
    from dsr_toolkit.tiny import build
    from dsr_toolkit.worlds.surround import SurroundWorld
    from dsr_toolkit.worlds.surround_export import write_scene

    street = write_scene(SurroundWorld(0)[0], Path("street"))
    Image.effect_noise((120, 90), 60).convert("RGB").save("picture.png")
    np.save("cloud.npy", np.random.default_rng(0).random((300, 3)))
    truth = Path("room")  # the layout "room": images and condition.npz
    truth.mkdir(exist_ok=True)
    for number in range(2):
        Image.effect_noise((120, 90), 60).convert("RGB").save(truth / f"{number}.png")
    intrinsics = np.array([[100.0, 0, 60], [0, 100, 45], [0, 0, 1]])
    poses = np.stack([np.eye(4), np.eye(4)])
    poses[1, 0, 3] = 0.1
    np.savez(
        truth / "condition.npz",
        poses=poses,
        depths=1 + np.random.default_rng(1).random((2, 90, 120)),
        intrinsics=np.stack([intrinsics] * 2),
    )
    asked = {
        "dsr-bench": {"videoID": str(CLIP), "options": ["A. yes", "B. no"], "question": "Near?", "answer": "A"},
        "vlm4d": {"video": str(CLIP), "question": "Where", "choices": {"A": "left", "B": "right"}, "answer": "A"},
        "sti-bench": {
            "Video": str(CLIP), "Task": "Speed", "time_start": 0, "time_end": 1, "Question": "Fast?",
            "Candidates": {"A": "1", "B": "2"}, "Answer": "A",
        },
        "vsi-bench": {
            "dataset": str(CLIP.parent), "scene_name": CLIP.stem, "question_type": "count", "question": "How many?",
            "options": None, "ground_truth": "2",
        },
    }  # fmt: skip
    for name, question in asked.items():
        Path(f"{name}.json").write_text(json.dumps([question]))
    folder = Path("demo")
    small = ("--frames", 2)
    scores = ("--model", "pi3", "-o")
    bench = Path("bench")  # a question of each benchmark about a short clip
    (bench / "videos" / "set").mkdir(parents=True, exist_ok=True)
    for name in ("clip.mp4", "set/clip.mp4"):
        write_clip(bench / "videos" / name)
    for name, question in QUESTIONS.items():
        (bench / f"{name}.json").write_text(json.dumps([question]))
    with contextlib.redirect_stderr(io.StringIO()):
        converted = {name: build(name, Path("converted", name)) for name in ("dsr", "pi3")}
    models = [part for name, hub in converted.items() for part in ("--model", f"{name}={hub}")]
    cases = {
        "demo": demo(folder),
        "ask": works(
            "ask", "--video", CLIP, "Does it move?", "--frames", 4, "--max-new-tokens", 4, "-o", "ask",
            files=("ask/answer.json",),
        ),
        "reconstruct": works(
            "reconstruct", CLIP, *small, "-o", "scene",
            files=[f"scene/{name}" for name in ("scene.glb", "scene.html", "overview.png", "reconstruct.json")],
        ),
        "reconstruct all": works(
            "reconstruct", CLIP, *small, "--model", "page4d", "-o", "all", "--format", "all",
            files=[f"all/{name}" for name in ("cloud.ply", "geometry.npz", "depth.mp4", "trajectory.tum")],
        ),
        "reconstruct rrd": names("view", "reconstruct", CLIP, *small, "--format", "rrd", "-o", "rrd"),
        "reconstruct loops": names("geometry", "reconstruct", CLIP, "--window", 4, "-o", "loops"),
        "segment": works(
            "segment", "picture.png", "a wall", "-o", "masks", files=("masks/segment.json", "masks/overlay.png")
        ),
        "segment ask": works(
            "segment", "picture.png", "--ask", "What is it?", "--max-new-tokens", 4, "-o", "answer",
            files=("answer/segment.json",),
        ),
        "batch": works(
            "batch", "ask", CLIP, "--question", "Does it move?", "--set", "max_new_tokens=4", "-o", "many",
            files=("many/results.parquet",),
        ),
        "batch ray": names("scale", "batch", "ask", CLIP, "--engine", "ray", "-o", "ray"),
        "batch cad": names("cad", "batch", "cad", "cloud.npy", "-o", "solids"),
        "scene": works("scene", street, "-o", "tokens", files=("tokens/attention.png",)),
        "cad points": names("cad", "cad", "cloud.npy", "-o", "part.step"),
        "cad text": names("cad", "cad", "--text", "A plate", "-o", "part.step"),
        "cad programs": names("cad", "cad", "cloud.npy", "--programs", "part.py", "-o", "part.step"),
        "eval cad": names("cad", "eval", "cad", ".", "."),
        "eval relpose": names("geometry", "eval", "relpose", truth, *scores, "relpose"),
        "eval points": names("geometry", "eval", "points", truth, *scores, "points"),
        "eval video-depth": works("eval", "video-depth", truth, *scores, "video"),
        "eval mono-depth": works("eval", "mono-depth", truth, *scores, "mono"),
        **{
            f"eval {name}": works("eval", name, f"{name}.json", "-o", name, files=(f"{name}/result.json",))
            for name in asked
        },
        **{
            f"eval {name}": works("eval", name, bench / f"{name}.json", "--model", converted["dsr"], "-o", name)
            for name in QUESTIONS
        },
        "eval world": works(
            "eval", "world", "pi3", "--seed", 1, "--count", 1, "--json", "world.json", files=("world.json",)
        ),
        "train": names("train", "train", "--recipe", "tiny/pi3", "--output", "trained"),
        "convert verify": works("convert", "verify", converted["pi3"]),
        "convert hub": works("convert", "hub", *models, "--output", "repo"),
        "convert verify hub": works("convert", "verify", "repo"),
        "serve": names("serve", "serve", "--port", 0),
    }  # fmt: skip
    for name in COMMANDS:
        check(any(case.split()[0] == name for case in cases), f"`dsr {name}` has no case in {__file__}")
    for task in TASKS:
        check(f"eval {task}" in cases, f"`dsr eval {task}` has no case in {__file__}")
    for name in COMMANDS:
        cases[f"{name} --help"] = works(name, "--help")
    check(build_parser(), "no parser")
    return cases


# --------------------------------------------------------------------------------------
# The repository
# --------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Everything that the other two need, by the source tree."""
    from dsr_toolkit.tiny import repository_folder
    from tests.hub import samples

    folder.mkdir(parents=True, exist_ok=True)
    job = {"repository": str(repository_folder()), "requests": {name: make() for name, make in samples.GOOD.items()}}
    (folder / "job.json").write_text(json.dumps(job))


def load_file(repository: Path, name: str):
    """A module of the repository, as the Hub's inference toolkit loads handler.py: its folder is on the path."""
    if str(repository) not in sys.path:
        hidden = [module for module in SOURCE_MODULES if importlib.util.find_spec(module) is not None]
        check(not hidden, f"the source tree is in reach: {', '.join(hidden)}; use `python -P` elsewhere")
        sys.path.insert(0, str(repository))
    spec = importlib.util.spec_from_file_location(name, repository / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def endpoint(folder: Path) -> dict:
    job = json.loads((folder / "job.json").read_text())
    handler = load_file(Path(job["repository"]), "handler").EndpointHandler(job["repository"])
    asked = {request["task"] for request in job["requests"].values()}
    check(asked == set(handler.tasks), f"requests cover {sorted(asked)}, the handler has {sorted(handler.tasks)}")

    def answered(request: dict):
        def case() -> str:
            answer = handler(request)
            check(isinstance(answer, dict) and "error" not in answer, answer)
            return "works"

        return case

    def refused() -> str:
        request = {"task": "cad", "inputs": {"text": "A plate"}, "parameters": {"max_new_tokens": 4, "execute": True}}
        try:
            said = json.dumps(handler(request))
        except Exception as error:
            said = str(error)
        check("[cad]" in said, said)
        return "names [cad]"

    cases = {f"{request['task']}: {name}": answered(request) for name, request in job["requests"].items()}
    return cases | {"cad: execute": refused}


def app(folder: Path) -> dict:
    repository = Path(json.loads((folder / "job.json").read_text())["repository"])
    if importlib.util.find_spec("gradio") is None:

        def said() -> str:
            command = [sys.executable, str(repository / "app.py")]
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            lines = done.stderr.strip().splitlines()
            check(done.returncode and len(lines) == 1 and "[serve]" in lines[0], done.returncode, done.stderr)
            return "names [serve]"

        return {"app.py": said}

    page = load_file(repository, "app")
    handler = sys.modules.get("handler") or load_file(repository, "handler")
    space = page.Space(handler.EndpointHandler(str(repository)), handler.RequestError, folder / "scratch")
    files, models = space.files, space.endpoint.describe()
    room, street = (
        [str(path) for path in files["room"]],
        [str(files["street"][name]) for name in space.examples.CAMERAS],
    )

    def silent(*args, **kwargs) -> None:
        pass

    tabs = {
        "ask": lambda: space.ask(str(files["video"]), None, "Does it move?", 4, 4, progress=silent),
        "reconstruct": lambda: space.reconstruct(room, None, models["reconstruct"]["models"][0], 0.1, progress=silent),
        "segment": lambda: space.segment(room[0], "", "a wall", progress=silent),
        "cad": lambda: space.cad(str(files["part"]), None, "", models["cad"]["models"][0], 1, 4, progress=silent),
        "scene": lambda: space.scene(str(files["calibration"]), "", *street, progress=silent),
    }
    check(tabs.keys() == space.endpoint.tasks.keys(), f"tabs of {sorted(tabs)}, tasks {sorted(space.endpoint.tasks)}")

    def shown(tab):
        def case() -> str:
            with contextlib.redirect_stdout(io.StringIO()):
                *_, results = page.live.each(tab())
                check(results[0] is not None, "nothing is shown")
            return "works"

        return case

    return {"build": lambda: str(type(space.build()).__name__)} | {name: shown(tab) for name, tab in tabs.items()}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "prepare":
        prepare(Path(rest[0]))
        sys.exit(0)
    if what == "promised":
        cases = {"demo": lambda: promised(Path(rest[0]))}
    else:
        cases = {"commands": commands, "endpoint": endpoint, "app": app}[what](*map(Path, rest))
    sys.exit(1 if run_cases(cases) else 0)
