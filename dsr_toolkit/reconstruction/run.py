"""
A scene from its images to its files: predicted whole or in windows, placed, and written in every format that was asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..console import say
from .anchors import anchor
from .conditions import Conditions, conditions_of_views
from .inputs import check_readable, is_multiview, multiview_files, multiview_frames
from .judge import Judge
from .known import Known, read_cameras, read_depths
from .scenes import Scene
from .views import View, predict
from .windows import reconstruct_windows
from .writers import OWN_SCALE, About, open_writers


@dataclass(frozen=True)
class Options:
    """
    How scenes are reconstructed; names as in `dsr reconstruct`.

    Args:
        formats, max_points: see [`open_writers`]. interval, fps, frames: which frames, see `find_frames`.
        window, overlap: frames of a window and those it shares with the next (None: all frames together). loops, prior:
            see [`reconstruct_windows`].
        confidence, edge_tolerance, original_size, point_source: see [`predict`].
        depth_scale: stored number of one unit of length in 16-bit depth images.
    """

    formats: tuple[str, ...] = ("glb", "html")
    max_points: int = 1_000_000
    interval: int | None = None
    fps: float | None = None
    frames: int | None = None
    window: int | None = None
    overlap: int | None = None
    loops: bool = True
    prior: bool = False
    confidence: float = 0.1
    edge_tolerance: float | None = 0.03
    original_size: bool = False
    point_source: str = "depth"
    depth_scale: float = 1000.0

    # What decides a window's prediction beside its frames.
    PREDICTION = ("prior", "confidence", "edge_tolerance", "original_size", "point_source", "depth_scale")


@dataclass
class Reconstructor:
    """One model for any number of scenes."""

    model: object
    processor: object
    options: Options = field(default_factory=Options)

    @property
    def reads_conditions(self) -> bool:
        config = self.model.config
        return getattr(config, "variant", None) == "pi3x" and config.use_conditioning

    @property
    def unit(self) -> str:
        return "metres" if getattr(self.model.config, "variant", None) == "pi3x" else OWN_SCALE

    def scene(self, scene: Scene, folder: Path, cache: Path) -> dict:
        """
        Write the files of a scene to `folder`, which exists; returns its report. `cache` keeps windows until then.
        """
        known = self.known(scene)
        if is_multiview(scene.source):
            if known is not None:
                raise ValueError("--cameras and --depths are for one sequence; INPUT holds synchronised views.")
            return self._multiview(scene, folder)
        return self._sequence(scene, known, folder, cache)

    def known(self, scene: Scene) -> Known | None:
        if scene.cameras is None and scene.depths is None:
            return None
        known = Known() if scene.cameras is None else read_cameras(scene.cameras)
        if scene.depths is not None:
            read_depths(known, scene.depths, self.options.depth_scale)
        return known

    # ---- one sequence ----------------------------------------------------------------------

    def _sequence(self, scene: Scene, known: Known | None, folder: Path, cache: Path) -> dict:
        from tqdm.auto import tqdm

        from modeling_dsr.frames import find_frames

        options = self.options
        source = find_frames(scene.source, options.interval, options.fps, options.frames)
        check_readable(source)
        frames, total = iter(source), len(source)
        if total == 1 and source.video is not None and not (options.interval or options.fps or options.frames):
            say("The video is so short that one of its frames is taken; --interval 1 takes all.")
        judge = None if known is None else Judge(known, self.reads_conditions)
        frames = frames if judge is None else judge.numbered(frames)
        anchored = judge is not None and judge.has_poses
        look = self._look(judge)
        joins: dict = {}
        if options.window is None:
            say(f"Looking at {total} frames together …" if total > 1 else "Looking at one frame …")
            views: Iterable[View] = look(list(frames))
            place = anchor(views, judge.poses(views)) if anchored else None
            views = views if place is None else [view.moved(place) for view in views]
        else:
            frames = tqdm(frames, total=total, unit="frame", desc="Looking at windows")
            views = reconstruct_windows(
                look,
                frames,
                options.window,
                options.overlap,
                cache,
                loops=options.loops and not anchored,
                report=joins,
                total=total,
                prior=options.prior,
                pose_of=(lambda view: judge.poses([view])[0]) if anchored else None,
            )
        views = _shown(views, total, "Writing")
        views = views if judge is None else judge.watched(views)
        # Known cameras bring their own unit.
        unit = "the unit of the known cameras" if anchored else self.unit
        about = About(scene.source.resolve().name, unit, seconds=source.video is not None)
        report = self._write(views, folder, options.formats, about) | joins
        return report if judge is None else report | {"known": judge.report()}

    def _look(self, judge: Judge | None):
        """`predict` of windows, with what is known of their frames."""

        def look(frames: list, before: list[View] | None = None) -> list[View]:
            conditions = None
            if self.reads_conditions:
                conditions = Conditions.none(len(frames)) if judge is None else judge.conditions(frames)
                if before:
                    told = conditions_of_views(before, [frame.image.size for frame in frames])
                    rest = Conditions.none(len(frames) - len(before))
                    both = Conditions(*(a + b for a, b in zip(vars(told).values(), vars(rest).values())))
                    # What is truly known comes first; poses of two worlds do not mix.
                    both.poses = (
                        both.poses if not any(pose is not None for pose in conditions.poses) else conditions.poses
                    )
                    conditions = conditions.over(both)
                if not any(conditions.counts().values()):
                    conditions = None
            return self._predict(frames, conditions=conditions)

        return look

    def _predict(self, frames: list, num_views: int | None = None, conditions: Conditions | None = None) -> list[View]:
        options = self.options
        views = predict(
            self.model,
            self.processor,
            [frame.image for frame in frames],
            [frame.name for frame in frames],
            [frame.time for frame in frames],
            confidence=options.confidence,
            edge_tolerance=options.edge_tolerance or None,
            original_size=options.original_size,
            point_source=options.point_source,
            num_views=num_views,
            conditions=conditions,
        )
        return [_without_transparent(view, frame.opaque) for view, frame in zip(views, frames, strict=True)]

    # ---- synchronised views ------------------------------------------------------------------

    def _multiview(self, scene: Scene, folder: Path) -> dict:
        """
        All times and views together, so that they share a world; a folder of files per time, a trajectory per view.
        """
        from .writers.tables import TumWriter

        options = self.options
        if options.interval or options.fps or options.frames or options.window:
            raise ValueError(
                "--interval, --fps, --frames and --window are for one sequence; INPUT holds synchronised views."
            )
        times, reports, files = multiview_files(scene.source), {}, []
        frames = list(multiview_frames(times))
        each = len(frames) // len(times)
        say(f"Looking at {len(times)} times × {each} views together …")
        # A model that was not made for views sees them as one sequence.
        knows_views = getattr(self.model.config, "is_multiview", False)
        views = self._predict(frames, each if knows_views else None)
        if views[0].dynamic is None:
            say("This model has no dynamic mask: what moves is not coloured apart.")
        about = About(scene.source.resolve().name, self.unit, root=views[0].camera_to_world)
        if "tum" in options.formats:
            for number in range(each):
                writer = TumWriter(folder, 0, about, f"trajectory_view{number}.tum")
                for view in views[number::each]:
                    writer.add(view)
                files += [path.name for path in writer.finish()]
        formats = tuple(name for name in options.formats if name != "tum")
        for number, name in enumerate(times):
            (folder / name).mkdir()
            here = replace(about, title=f"{about.title}, {name}")
            some = views[number * each : (number + 1) * each]
            reports[name] = self._write(some, folder / name, formats, here)
            files += [f"{name}/{file}" for file in reports[name].pop("written")]
        whole = {key: sum(report[key] for report in reports.values()) for key in ("views", "points")}
        return whole | {"unit": about.unit, "times": reports, "written": files}

    # ---- files -------------------------------------------------------------------------------

    def _write(self, views: Iterable[View], folder: Path, formats: tuple[str, ...], about: About) -> dict:
        """
        Every view to every writer. A format that fails costs nothing but its own files, and is named in the report.

        Returns:
            Counts, and `written`: the files, relative to `folder`.
        """
        from .pictures import Overview

        writers = open_writers(folder, formats, self.options.max_points, about) if formats else {}
        overview, failed, files, count, points = Overview(about.unit), {}, [], 0, 0

        def attempt(name: str, work) -> list[Path]:
            try:
                return work() or []
            except (OSError, ValueError) as error:
                failed[name] = str(error)
                writers.pop(name)
                say(f"{name} cannot be written: {error} The other formats go on.")
                return []

        for view in views:
            view = view.finite()
            for name, writer in list(writers.items()):
                attempt(name, lambda: writer.add(view))
            overview.add(view)
            count, points = count + 1, points + int(view.mask.sum())
        for name, writer in list(writers.items()):
            files += attempt(name, writer.finish)
        overview.picture().save(folder / "overview.png")
        files.append(folder / "overview.png")
        inside = [
            one for path in files for one in (sorted(path.rglob("*")) if path.is_dir() else [path]) if one.is_file()
        ]
        report = {"views": count, "points": points, "unit": about.unit}
        report["written"] = [one.relative_to(folder).as_posix() for one in inside]
        return report | ({"failed": failed} if failed else {})


def _shown(views: Iterable[View], total: int, what: str) -> Iterator[View]:
    """With a bar that appears with the first of them: before it, predictions may have one of their own."""
    from tqdm.auto import tqdm

    bar = None
    for view in views:
        bar = bar or tqdm(total=total, unit="frame", desc=what)
        yield view
        bar.update()
    if bar:
        bar.close()


def _without_transparent(view: View, opaque: np.ndarray | None) -> View:
    """Where an image is transparent nothing is to be seen."""
    if opaque is None:
        return view
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(view.depth.shape, opaque.shape))
    return replace(view, mask=view.mask & opaque[np.ix_(rows, columns)])
