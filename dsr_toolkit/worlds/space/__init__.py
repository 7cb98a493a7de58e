"""The space world: coloured things that move and turn on the floor of a textured room, under a moving camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..world import World
from .facts import Facts
from .phrases import Phrase, phrases
from .picture import contact_sheet
from .questions import Question, ask, draw_kinds, questions_for, wishes_for
from .render import render
from .scene import DIFFICULTIES, Scene, SceneSettings, draw_scene

__all__ = ["Phrase", "Question", "SpaceSample", "SpaceWorld", "contact_sheet"]


@dataclass
class SpaceSample:
    """
    A clip and all that is true of it. T moments, V views (the axis is there with several views alone), K things.

    Args:
        seed, index: where it comes from.
        images: uint8 `[T, (V,) H, W, 3]`.
        depth: float32 `[T, (V,) H, W]`, z in the camera's frame in metres, known everywhere.
        instances: uint8 `[T, (V,) H, W]`, 0 for the room and k + 1 for thing k.
        dynamic: bool `[T, (V,) H, W]`, pixels of things that move or turn.
        intrinsics: `[T, (V,) 3, 3]` in pixels; the centre of the first pixel is (0, 0).
        poses: `[T, (V,) 4, 4]` camera-to-world; camera x right, y down, z forward; world z up, floor at 0; metres.
        names: of the K things, as in "red ball"; unique.
        positions: `[K, T, 3]` of their centres in the world. rotations: `[K, T, 3, 3]` thing-to-world; the first column
            is the front, which carries a white mark.
        questions: about the whole clip, each of another type.
        times: seconds `[T]`. fps: frames a second of the clip as a video.
        scene: what all of it was computed from.
    """

    seed: int
    index: int
    images: np.ndarray
    depth: np.ndarray
    instances: np.ndarray
    dynamic: np.ndarray
    intrinsics: np.ndarray
    poses: np.ndarray
    names: list[str]
    positions: np.ndarray
    rotations: np.ndarray
    questions: list[Question]
    times: np.ndarray
    fps: float
    scene: Scene

    def phrases(self, frame: int) -> list[Phrase]:
        """Phrases that each name one thing of a frame, with its mask; see [`Phrase`]."""
        return phrases(self, frame)


class SpaceWorld(World):
    """
    Clips of moving things.

    Args:
        seed: see [`World`].
        frames: moments of a clip, at least 1. The same scene is cut into more or fewer of them.
        height, width: of a picture in pixels.
        views: synchronised cameras; with more than one, samples have an axis of views.
        difficulty: `"easy"`, `"normal"` or `"hard"`, or a `SceneSettings`.
        seconds: length of a clip.
        questions: how many questions are asked about a clip, each of another type, 0 to 12.
        question_kinds: which ones: types ("rel_dis"), viewers ("camera", "object") or both ("rel_dis/object"); default:
        all.
    """

    def __init__(
        self,
        seed: int,
        frames: int = 8,
        height: int = 112,
        width: int = 112,
        views: int = 1,
        difficulty: str | SceneSettings = "normal",
        seconds: float = 2.0,
        questions: int = 1,
        question_kinds=None,
    ):
        super().__init__(seed)
        for name, value in (("frames", frames), ("height", height), ("width", width), ("views", views)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        if not isinstance(difficulty, SceneSettings) and difficulty not in DIFFICULTIES:
            raise ValueError(f"`difficulty` must be one of {', '.join(DIFFICULTIES)}, got {difficulty!r}.")
        if not seconds > 0:
            raise ValueError(f"`seconds` must be positive, got {seconds!r}.")
        self.frames, self.height, self.width, self.views, self.seconds = frames, height, width, views, seconds
        self.kinds = questions_for(question_kinds)
        most = len({kind.type for kind in self.kinds})
        if not isinstance(questions, int) or not 0 <= questions <= most:
            raise ValueError(f"`questions` must be an integer in 0…{most}, the number of types; got {questions!r}.")
        self.questions = questions
        self.settings = difficulty if isinstance(difficulty, SceneSettings) else DIFFICULTIES[difficulty]

    @property
    def tau(self) -> np.ndarray:
        """Moments of the frames, -1 … 1 over the clip."""
        return np.linspace(-1, 1, self.frames) if self.frames > 1 else np.zeros(1)

    def scene(self, index: int) -> Scene:
        """What sample `index` shows, without pictures."""
        return self._scene_and_wishes(index)[0]

    def asked(self, index: int) -> tuple[Scene, list[Question]]:
        """Scene and questions of sample `index`, without pictures."""
        scene, wishes = self._scene_and_wishes(index)
        generator = self.generator(index, "wording")
        return scene, [ask(generator, scene, wish, self.settings.most_options) for wish in wishes]

    def _scene_and_wishes(self, index: int):
        generator, wishes = self.generator(index, "scene"), []
        # Before any scene, so that answers which are harder to come by are no rarer.
        chosen = draw_kinds(generator, self.kinds, self.questions)

        def wanted(still: Scene):
            nonlocal wishes
            wishes = wishes_for(generator, still, chosen)
            if wishes is None:
                return None

            def granted(scene: Scene) -> bool:
                found = Facts(scene, self.settings.margins) if wishes else None
                return all(wish.granted(found) for wish in wishes)

            return granted

        scene = draw_scene(generator, self.settings, self.seconds, self.views, wanted)
        return scene, wishes

    def sample(self, index: int) -> SpaceSample:
        (scene, questions), tau = self.asked(index), self.tau
        seen = render(scene, tau, self.height, self.width)
        if self.views == 1:
            seen = {name: values[:, 0] for name, values in seen.items()}
        dynamic = np.array([False] + [thing.dynamic for thing in scene.things])
        return SpaceSample(
            seed=self.seed,
            index=index,
            dynamic=dynamic[seen["instances"]],
            names=[thing.name for thing in scene.things],
            positions=scene.positions(tau),
            rotations=scene.rotations(tau),
            questions=questions,
            times=(tau + 1) / 2 * self.seconds,
            fps=max(self.frames - 1, 1) / self.seconds,
            scene=scene,
            **seen,
        )
