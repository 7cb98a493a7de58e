"""The Space: every model of the repository in the browser, through the endpoint's own handler.

    python app.py [--model FOLDER] [--host 127.0.0.1] [--port 7860] [--keep-files 3600]

Without `--model` it serves what the variable DSR_MODEL names, a Hub repository or a folder, or the folder it lies in.
If no model is there, it serves the tiny ones that this library carries.
"""

import argparse
import base64
import importlib.util
import inspect
import io
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

try:
    import gradio as gr
except ImportError:
    raise SystemExit('app.py needs gradio: pip install gradio, or pip install "dsr-models[serve]"') from None
import numpy as np
from PIL import Image

HERE = Path(__file__).parent
COLOURS = ((230, 60, 60), (60, 120, 235), (50, 175, 90), (245, 160, 30), (160, 80, 220), (30, 180, 190))
NO_MASKS = "No phrase of the answer was marked."


def _module(name: str):
    """A file beside this one, as a module."""
    spec = importlib.util.spec_from_file_location(f"space_{name}", HERE / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


words = _module("space_words")
live = _module("space_answers")
pictures = _module("space_pictures")


class Space:
    """
    The tabs of what a repository can do.

    Args:
        endpoint: an `EndpointHandler`. scratch: folder for examples and for files to download.
        keep_files: seconds for which files that were uploaded or made are kept.
        remark: on the models, below the heading.
    """

    def __init__(self, endpoint, error_class, scratch: Path, keep_files: float = 3600, remark: str = ""):
        self.endpoint, self.error_class, self.scratch, self.keep_files = endpoint, error_class, scratch, keep_files
        self.remark = remark
        self.examples = _module("space_examples")
        self.files, self.answers = self.examples.write(scratch / "examples"), scratch / "answers"
        self.answers.mkdir(exist_ok=True)
        self.busy = threading.Lock()  # a model is for one thread at a time

    # ---- a request -----------------------------------------------------------------------

    def answer(self, task: str, inputs: dict, parameters: dict, progress: gr.Progress):
        """Job and answer."""
        *_, last = self.answering(task, inputs, parameters, progress)
        return last

    def answering(self, task: str, inputs: dict, parameters: dict, progress: gr.Progress):
        """Yields what is written so far, again and again, and at last job and answer; a page that is closed ends it."""
        try:
            progress(0.05, desc="Reading the files")
            listener = live.Written()
            job = self.endpoint.prepare({"task": task, "inputs": inputs, "parameters": parameters}, listener)
            progress(0.3, desc=f"{job.model} is at work; the first time it is loaded")
            run = live.Running(self.endpoint, job, self.busy)
            try:
                for tokens in listener.until(run):
                    yield self.endpoint.text_so_far(task, job.model, tokens, job.parameters)
            finally:
                listener.cancelled = True
            progress(0.9, desc="Drawing")
            yield job, self.endpoint.finish(job, run.result())
        except self.error_class as error:
            raise words.Problem(words.of_page(task, error.message)) from error

    def save(self, name: str, content: str) -> str:
        """A file of an answer, to be looked at or downloaded."""
        path = Path(tempfile.mkdtemp(dir=self.answers)) / name
        path.write_bytes(base64.b64decode(content))
        return str(path)

    def told(self, function, outputs: list, problem):
        """
        A function of the page whose problems are told beside the answer, which stays.

        Returns:
            the function, and where its results and its problem go.
        """
        count = len(outputs)

        def at_once(progress=gr.Progress(), *given):
            try:
                results = function(*given, progress=progress)
                return (*(results if isinstance(results, tuple) else (results,)), "")
            except words.Problem as found:
                return (*[gr.skip()] * count, f"**This cannot be answered.** {found}")

        def answered(progress=gr.Progress(), *given):
            try:
                for results in live.each(function(*given, progress=progress)):
                    yield (*(results if isinstance(results, tuple) else (results,)), "")
            except words.Problem as found:
                yield (*[gr.skip()] * count, f"**This cannot be answered.** {found}")

        # Where nothing comes bit by bit: the viewer of solids and clouds draws no file that an answer in bits brings.
        return answered if inspect.isgeneratorfunction(function) else at_once, [*outputs, problem]

    # ---- tabs ----------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        titles = {"ask": "Ask", "reconstruct": "Reconstruct", "segment": "Segment", "cad": "CAD", "scene": "Scene"}
        with gr.Blocks(
            title="Spatial models", delete_cache=(max(1, int(self.keep_files / 4)), int(self.keep_files))
        ) as blocks:
            gr.Markdown(
                f"# Spatial models\nEvery tab comes with an example; *Run* computes it here and now.\n\n{self.remark}"
            )
            with gr.Tabs(overflow_behavior="wrap"):  # on a phone, too, every tab is to be seen
                for task, title in titles.items():
                    if task in self.endpoint.tasks:
                        with gr.Tab(title, id=task):
                            getattr(self, f"_{task}_tab")()
        return blocks

    def _ask_tab(self) -> None:
        texts = self.examples.TEXTS
        with gr.Row():
            with gr.Column():
                video = gr.Video(str(self.files["video"]), label="Video", elem_id="ask-video")
                images = gr.File(
                    None, label="or images", file_count="multiple", file_types=["image"], elem_id="ask-images"
                )
                question = gr.Textbox(texts["ask"], label="Question", lines=4, elem_id="ask-question")
                gr.Markdown(f"True of the example: {texts['ask_true']}")
                frames = gr.Slider(2, self.endpoint.limits.frames, 8, step=1, label="Frames of the video")
                tokens = gr.Slider(1, self.endpoint.limits.new_tokens, 64, step=1, label="Longest answer, in tokens")
                run = gr.Button("Run", variant="primary", elem_id="ask-run")
                problem = gr.Markdown(elem_id="ask-problem")
            with gr.Column():
                answer = gr.Textbox(label="Answer", elem_id="ask-answer", buttons=["copy"])
                looked = gr.Gallery(label="Where the geometry tokens looked", elem_id="ask-looked", columns=4)
        one_of(video, images)
        ask, outputs = self.told(self.ask, [answer, looked], problem)
        run.click(ask, [video, images, question, frames, tokens], outputs)

    def ask(self, video, images, question, frames, tokens, progress):
        inputs, parameters = {"question": question}, {"max_new_tokens": int(tokens), "attention": True}
        if images:
            inputs["images"] = [Path(image).read_bytes() for image in images]
        if video:
            inputs["video"], parameters["num_frames"] = Path(video).read_bytes(), int(frames)
        for so_far in self.answering("ask", inputs, parameters, progress):
            if isinstance(so_far, str):
                yield so_far, gr.skip()
        job, answer = so_far
        heat = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in answer.get("attention", [])]
        shown = [pictures.glowing(picture, frame) for picture, frame in zip(heat, job.media["shown"])]
        yield answer["answer"], [(picture, f"{number + 1}") for number, picture in enumerate(shown)]

    def _reconstruct_tab(self) -> None:
        models = self.endpoint.describe()["reconstruct"]["models"]
        with gr.Row():
            with gr.Column():
                images = gr.File(
                    [str(path) for path in self.files["room"]], label="Images of one scene", file_count="multiple",
                    file_types=["image"], elem_id="reconstruct-images",
                )  # fmt: skip
                video = gr.Video(None, label="or a video", elem_id="reconstruct-video")
                model = gr.Dropdown(models, value=models[0], label="Model", elem_id="reconstruct-model")
                confidence = gr.Slider(0, 1, 0.1, label="Leave out points below this confidence")
                run = gr.Button("Run", variant="primary", elem_id="reconstruct-run")
                problem = gr.Markdown(elem_id="reconstruct-problem")
            with gr.Column():
                scene = gr.Model3D(label="Points", display_mode="point_cloud", elem_id="reconstruct-scene")
                depth = gr.Gallery(label="Depth, near is bright", elem_id="reconstruct-depth", columns=4)
                cameras = gr.JSON(label="Cameras", elem_id="reconstruct-cameras")
        one_of(images, video)
        reconstruct, outputs = self.told(self.reconstruct, [scene, depth, cameras], problem)
        run.click(reconstruct, [images, video, model, confidence], outputs)

    def reconstruct(self, images, video, model, confidence, progress):
        inputs = {"video": Path(video).read_bytes()} if video else {}
        if images:
            inputs["images"] = [Path(image).read_bytes() for image in images]
        parameters = {"model": model, "confidence": confidence, "outputs": ["glb", "depth", "mask"]}
        _, answer = self.answer("reconstruct", inputs, parameters, progress)
        maps = []
        for frame in answer["frames"]:
            depth, mask = (np.load(io.BytesIO(base64.b64decode(frame[name]))) for name in ("depth", "mask"))
            maps.append((pictures.depth_picture(depth, mask), f"{frame['index']}"))
        cameras = [
            {name: frame[name] for name in ("index", "camera_to_world", "intrinsics")} for frame in answer["frames"]
        ]
        return self.save("scene.glb", answer["glb"]), maps, {"points": answer["points"], "cameras": cameras}

    def _segment_tab(self) -> None:
        found = gr.State([])
        with gr.Row():
            with gr.Column():
                image = gr.Image(str(self.files["room"][0]), label="Image", type="filepath", elem_id="segment-image")
                question = gr.Textbox("", label="Question", elem_id="segment-question")
                phrases = gr.Textbox(
                    self.examples.TEXTS["segment"],
                    label="Phrases, with commas; with a question, words of its answer",
                    elem_id="segment-phrases",
                )
                run = gr.Button("Run", variant="primary", elem_id="segment-run")
                problem = gr.Markdown(elem_id="segment-problem")
            with gr.Column():
                answer = gr.HighlightedText(
                    label="Click a phrase to see its mask",
                    elem_id="segment-answer",
                    show_inline_category=False,
                    interactive=False,
                )
                overlay = gr.Image(label="Mask", elem_id="segment-overlay")
                note = gr.Markdown(elem_id="segment-note")
        segment, outputs = self.told(self.segment, [answer, overlay, note, found], problem)
        run.click(segment, [image, question, phrases], outputs)
        answer.select(self.show_mask, [image, found], [overlay, note])

    def segment(self, image, question, phrases, progress):
        inputs = {"image": Path(image).read_bytes()} if image else {}
        if question.strip():
            inputs["question"] = question
        if listed := [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]:
            inputs["phrases"] = listed
        for so_far in self.answering("segment", inputs, {"mask_format": "png", "max_new_tokens": 64}, progress):
            if isinstance(so_far, str):
                yield [(so_far, None)], gr.skip(), gr.skip(), gr.skip()
        _, answer = so_far
        entries = answer["phrases"]
        overlay = self._masked(image, entries, range(len(entries)))
        note = "" if entries else NO_MASKS
        yield pictures.highlighted(answer.get("answer"), entries), overlay, note, entries

    def show_mask(self, image, entries, event: gr.SelectData):
        label = event.value[1] if isinstance(event.value, (list, tuple)) else None
        if not label:
            return gr.skip(), "This part of the answer has no mask."
        number = int(label) - 1
        entry = entries[number]
        return self._masked(
            image, entries, [number]
        ), f"**{entry['phrase']}**: score {entry['score']:.2f}, box {entry['box']}"

    def _masked(self, image, entries, numbers) -> Image.Image:
        """The image with some masks in colour."""
        from PIL import ImageOps

        picture = np.asarray(ImageOps.exif_transpose(Image.open(image)).convert("RGB")).astype(np.float32)
        for number in numbers:
            mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(entries[number]["mask"])))).astype(bool)
            picture[mask] = 0.45 * picture[mask] + 0.55 * np.array(COLOURS[number % len(COLOURS)])
        return Image.fromarray(picture.astype(np.uint8))

    def _cad_tab(self) -> None:
        models = self.endpoint.describe()["cad"]["models"]
        with gr.Row():
            with gr.Column():
                part = gr.File(
                    str(self.files["part"]),
                    label="A binary STL file, or points (.npy)",
                    file_types=[".stl", ".npy"],
                    elem_id="cad-part",
                )
                images = gr.File(
                    None, label="or 1, 2 or 4 views", file_count="multiple", file_types=["image"], elem_id="cad-images"
                )
                text = gr.Textbox("", label="or a description", elem_id="cad-text")
                model = gr.Dropdown(models, value=models[0], label="Model", elem_id="cad-model")
                candidates = gr.Slider(
                    1, self.endpoint.limits.candidates, 1, step=1, label="Candidates; the closest is kept"
                )
                tokens = gr.Slider(1, self.endpoint.limits.new_tokens, 256, step=1, label="Longest program, in tokens")
                run = gr.Button("Run", variant="primary", elem_id="cad-run")
                problem = gr.Markdown(elem_id="cad-problem")
            with gr.Column():
                program = gr.Code(
                    self.examples.TEXTS["program"],
                    language="python",
                    label="Program",
                    interactive=True,
                    elem_id="cad-program",
                )
                again = gr.Button("Run this program", elem_id="cad-execute")
                note = gr.Markdown(elem_id="cad-note")
                solid = gr.Model3D(
                    label="Solid: drag to turn, wheel to zoom", elem_id="cad-solid", clear_color=(1, 1, 1, 1)
                )
                picture = gr.Image(label="Picture", elem_id="cad-picture")
                step = gr.File(label="STEP", elem_id="cad-step")
        one_of(part, images, text)
        given, results = [part, images, text, model], [note, solid, picture, step]
        outcome = gr.State()
        cad, outputs = self.told(self.cad, [program, outcome], problem)
        written = run.click(cad, [*given, candidates, tokens], outputs)
        written.then(lambda found: [gr.skip()] * 4 if found is None else self._solid(found), [outcome], results)
        execute, outputs = self.told(self.execute, results, problem)
        again.click(execute, [program, *given], outputs)

    def cad(self, part, images, text, model, candidates, tokens, progress):
        parameters = {"model": model, "candidates": int(candidates), "max_new_tokens": int(tokens)}
        for so_far in self.answering("cad", self._part(part, images, text), parameters, progress):
            if isinstance(so_far, str):
                yield so_far, gr.skip()
        job, answer = so_far
        outcome = self._run_programs(answer["programs"], job, progress)
        yield answer["programs"][outcome.get("best") or 0], outcome

    def execute(self, program, part, images, text, model, progress):
        """The program as it stands in the editor, which people may have changed."""
        request = {"task": "cad", "inputs": self._part(part, images, text), "parameters": {"model": model}}
        try:
            job = self.endpoint.prepare(request)
        except self.error_class as error:
            raise words.Problem(words.of_page("cad", error.message)) from error
        return self._solid(self._run_programs([program], job, progress))

    def _part(self, part, images, text) -> dict:
        given = {"text": text} if text.strip() else {}
        if images:
            given["images"] = [Path(image).read_bytes() for image in images]
        if part:
            given["points" if part.lower().endswith(".npy") else "stl"] = Path(part).read_bytes()
        return given

    def _run_programs(self, programs, job, progress) -> dict:
        progress(0.92, desc=f"Running {len(programs)} program(s) in the sandbox")
        try:
            return self.endpoint.tasks["cad"].execute(programs, job)
        except (self.error_class, ImportError) as error:
            return {"best": None, "candidates": [], "message": f"Programs are not run here: {error}"}

    def _solid(self, outcome: dict):
        """Note, mesh, picture and STEP file of what came of programs."""
        tried = [
            "; ".join(filter(None, [f"{number}: {one['code']} {one['message']}".strip(), *one["notes"]]))
            for number, one in enumerate(outcome["candidates"], 1)
        ]
        note = "\n\n".join(filter(None, [outcome.get("message"), *map(words.as_code, tried)]))
        if outcome["best"] is None:
            return note, None, None, None
        picture = Image.open(io.BytesIO(base64.b64decode(outcome["picture"])))
        return (
            f"{note}\n\nvolume {outcome['volume']:.4g}",
            self.save("part.stl", outcome["stl"]),
            picture,
            outcome["step"] and self.save("part.step", outcome["step"]),
        )

    def _scene_tab(self) -> None:
        names = list(self.examples.CAMERAS)
        with gr.Row():
            with gr.Column():
                images = []
                for row in (names[:3], names[3:]):
                    with gr.Row():
                        for name in row:
                            street = str(self.files["street"][name])
                            images.append(
                                gr.Image(street, label=name, type="filepath", height=160, elem_id=f"scene-{name}")
                            )
                calibration = gr.File(
                    str(self.files["calibration"]), label="calibration.json, of these images", file_types=[".json"],
                    elem_id="scene-calibration",
                )  # fmt: skip
                texts = self.examples.TEXTS
                question = gr.Textbox(
                    texts["scene"], label="Question (models with a language model)", elem_id="scene-question"
                )
                gr.Markdown(f"True of the example: {texts['scene_true']}")
                run = gr.Button("Run", variant="primary", elem_id="scene-run")
                problem = gr.Markdown(elem_id="scene-problem")
            with gr.Column():
                answer = gr.Textbox(label="Answer", elem_id="scene-answer")
                picture = gr.Image(label="Where the scene tokens look", elem_id="scene-picture")
                shares = gr.Label(label="Attention per camera", elem_id="scene-shares")
        for image in images:  # the example's calibration says nothing about the images of somebody else
            image.upload(lambda: None, None, calibration)
        scene, outputs = self.told(self.scene, [answer, picture, shares], problem)
        run.click(scene, [calibration, question, *images], outputs)

    def scene(self, calibration, question, *images, progress):
        given = {name: Path(image).read_bytes() for name, image in zip(self.examples.CAMERAS, images) if image}
        inputs = {"images": given}
        if calibration:
            try:
                inputs["calibration"] = json.loads(Path(calibration).read_text(encoding="utf-8-sig"))
            except ValueError as error:
                raise words.Problem(f"calibration.json is no JSON: {error}") from error
        if question.strip():
            inputs["question"] = question
        for so_far in self.answering("scene", inputs, {"max_new_tokens": 64}, progress):
            if isinstance(so_far, str):
                yield so_far, gr.skip(), gr.skip()
        _, answer = so_far
        picture = Image.open(io.BytesIO(base64.b64decode(answer["picture"])))
        yield answer.get("answer", f"{answer['shape'][0]} scene tokens"), picture, answer["attention"]


def one_of(*components) -> None:
    """What is uploaded or written last stands for the others: they are emptied, and none is silently left out."""
    for component in components:
        others = [other for other in components if other is not component]
        empty = ["" if isinstance(other, gr.Textbox) else None for other in others]
        listen = component.input if isinstance(component, gr.Textbox) else component.upload
        listen(lambda empty=empty: empty if len(empty) > 1 else empty[0], None, others)


def default_model() -> tuple[str, str]:
    """The folder that this file lies in, or the tiny models where it holds none; and what to say of them."""
    if any(HERE.glob("config.json")) or any(HERE.glob("*/config.json")):
        return str(HERE), ""
    try:
        from dsr_toolkit.loading import REPOSITORY, resolve
    except ImportError:
        raise SystemExit(
            f"{HERE} holds no model: name one with --model, or install this library, which carries tiny ones."
        )
    folder, stand_in = resolve(None, REPOSITORY)
    return folder, stand_in.notice


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("DSR_MODEL"), help="a repository: folder or Hub name")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    parser.add_argument(
        "--keep-files", type=float, default=3600, metavar="SECONDS", help="of people and of answers (default: an hour)"
    )
    parser.add_argument("--device", help="default: a GPU if there is one")
    options = parser.parse_args(arguments)
    folder, remark = (options.model, "") if options.model else default_model()
    if not Path(folder).is_dir():
        from huggingface_hub import snapshot_download

        folder = snapshot_download(folder)
    handler = _module("handler")
    endpoint = handler.EndpointHandler(folder, device=options.device)
    with tempfile.TemporaryDirectory(prefix="space-") as scratch:
        space = Space(endpoint, handler.RequestError, Path(scratch), options.keep_files, remark)
        threading.Thread(target=words.keep_removing, args=[space.answers, options.keep_files], daemon=True).start()
        space.build().queue(default_concurrency_limit=4, max_size=32).launch(
            server_name=options.host, server_port=options.port, max_file_size=endpoint.limits.bytes,
            allowed_paths=[scratch],
            theme=gr.themes.Default(font="sans-serif", font_mono="monospace"), ssr_mode=False,
        )  # fmt: skip


if __name__ == "__main__":
    main()
