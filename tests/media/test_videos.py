"""What people have as videos, read rightly by the one reader."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from modeling_dsr.frames import decode_video, find_frames, read_frames
from modeling_dsr.video_reader import TooLarge, Video, VideoLimits, orient

av = pytest.importorskip("av")


def write(path, frames, times=None, rate=30, gop=30, ratio=None):
    """Frames `[N, H, W, 3]` in H.264, at their own times in seconds or at a constant rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        stream.codec_context.gop_size = gop
        if ratio:
            stream.codec_context.sample_aspect_ratio = ratio
        base = Fraction(1, rate) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(count=30, height=32, width=48):
    return np.stack([np.full((height, width, 3), 8 * (number % 30), np.uint8) for number in range(count)])


def remux(source, target, change=lambda packet: packet):
    with av.open(str(source)) as read, av.open(str(target), "w") as write_to:
        stream = read.streams.video[0]
        copy = write_to.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet = change(packet)
                packet.stream = copy
                write_to.mux(packet)
    return target


def test_a_clip_trimmed_without_encoding_is_what_people_see(tmp_path):
    whole = write(tmp_path / "whole.mp4", grey(90), gop=30)
    start = 1.5

    def shift(packet):
        offset = round(start / packet.time_base)
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        return packet

    trimmed = Video(remux(whole, tmp_path / "trimmed.mp4", shift))
    shown = list(trimmed.frames(range(len(trimmed))))
    assert len(trimmed) == 45 and len(shown) == 45
    assert abs(float(shown[0][1].mean()) - 8 * (45 % 30)) < 4
    frames, metadata = decode_video(tmp_path / "trimmed.mp4", 8)
    assert len(frames) == 8 and metadata.total_num_frames == 45


def test_a_recording_that_began_in_the_middle_begins_with_what_can_be_seen(tmp_path):
    """A transport stream that is cut anywhere: what is shown before its first keyframe has no beginning."""
    whole = write(tmp_path / "whole.ts", grey(60), gop=20).read_bytes()
    packets = len(whole) // 188
    for part in (0.25, 0.4, 0.55):
        (tmp_path / "cut.ts").write_bytes(whole[188 * int(packets * part) :])
        video = Video(tmp_path / "cut.ts")
        shown = list(video.frames(range(len(video))))
        assert 15 < len(shown) == len(video) < 60 - 60 * part
        assert abs(float(shown[0][1].mean()) - 8 * ((60 - len(video)) % 30)) < 4
        assert video.times[-1] == pytest.approx((len(video) - 1) / 30, abs=1e-4)


def test_recordings_that_were_joined_follow_one_another(tmp_path):
    one = write(tmp_path / "one.ts", grey(12), rate=10).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    video = Video(tmp_path / "two.ts")
    assert len(list(video.frames(range(len(video))))) == len(video) == 24
    assert video.times.tolist() == pytest.approx((np.arange(24) / 10).tolist(), abs=1e-4)


CODECS = {
    "a.mp4": ("libx264", {"bf": "3"}), "open.mp4": ("libx264", {"x264-params": "open-gop=1:bframes=3:scenecut=0"}),
    "a.mkv": ("libx264", {"bf": "2"}), "a.ts": ("libx264", {"bf": "3"}), "a.webm": ("libvpx-vp9", {}),
    "a.mov": ("mpeg4", {"bf": "2"}), "a.avi": ("mpeg4", {}), "a.mpg": ("mpeg2video", {"bf": "2"}), "a.gif": ("gif", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CODECS)
def test_frames_that_are_sought_are_those_that_decoding_in_order_gives(tmp_path, name):
    codec, options = CODECS[name]
    generator = np.random.default_rng(0)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "12", **options})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb8" if codec == "gif" else "yuv420p"
        for _ in range(90):
            pixels = generator.integers(0, 255, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    video = Video(tmp_path / name)
    every = dict(video.frames(range(len(video))))
    assert len(every) == len(video) >= 89
    for wanted in ([85], [0, 44, 88], sorted(generator.choice(89, 9, replace=False).tolist())):
        found = dict(video.frames(wanted))
        assert list(found) == wanted and all(np.array_equal(found[index], every[index]) for index in wanted)


def test_a_file_that_is_cut_short_is_an_error(tmp_path):
    with av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        generator = np.random.default_rng(0)
        for _ in range(60):
            noise = generator.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(ValueError, match="cut.mp4' is cut short"):
        decode_video(tmp_path / "cut.mp4", 8)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_times_are_the_stream_s_own(tmp_path, kind):
    times = np.cumsum([0, *np.random.default_rng(0).uniform(0.02, 1.2, 29)])
    write(tmp_path / f"phone.{kind}", grey(30), times)
    video = Video(tmp_path / f"phone.{kind}")
    assert np.abs(video.times - times).max() < 2e-3
    assert abs(video.fps - 29 / times[-1]) < 0.01 * video.fps
    found = [frame.time for frame in read_frames(tmp_path / f"phone.{kind}", num_frames=5)]
    assert np.allclose(found, times[np.linspace(0, 29, 5).round().astype(int)], atol=2e-3)
    per_second = find_frames(tmp_path / f"phone.{kind}", fps=1)
    shown = [max(index for index in range(30) if times[index] <= second + 2e-3) for second in range(int(times[-1]) + 1)]
    assert per_second.indices == sorted(set(shown))


def test_a_constant_rate_is_the_announced_one(tmp_path):
    write(tmp_path / "a.mp4", grey(20), rate=25)
    assert Video(tmp_path / "a.mp4").fps == 25 and Video(tmp_path / "a.mp4").duration == pytest.approx(0.8)


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    wide = write(tmp_path / "wide.mp4", grey(4), ratio=Fraction(4, 3))
    tall = write(tmp_path / "tall.mp4", grey(4), ratio=Fraction(1, 2))
    assert next(Video(wide).frames([0]))[1].shape == (32, 64, 3)
    assert next(Video(tall).frames([0]))[1].shape == (64, 48, 3)


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ((1, 0, 0, 1), [[1, 2], [3, 4]]),
        ((-1, 0, 0, -1), [[4, 3], [2, 1]]),
        ((-1, 0, 0, 1), [[2, 1], [4, 3]]),
        ((1, 0, 0, -1), [[3, 4], [1, 2]]),
        ((0, 1, -1, 0), [[3, 1], [4, 2]]),  # a quarter to the right
        ((0, -1, 1, 0), [[2, 4], [1, 3]]),  # a quarter to the left
        ((0, 1, 1, 0), [[1, 3], [2, 4]]),  # mirrored along the diagonal
    ],
)
def test_display_matrices_turn_and_mirror(matrix, expected):
    pixels = np.array([[1, 2], [3, 4]])[..., None].repeat(3, 2)
    assert orient(pixels, matrix)[..., 0].tolist() == expected


def test_a_change_of_size_inside_a_video_is_scaled(tmp_path):
    small, large = grey(6, 32, 48), grey(6, 64, 96)
    parts = [
        write(tmp_path / f"{name}.ts", frames, times)
        for name, frames, times in (("a", small, np.arange(6) / 30), ("b", large, np.arange(6, 12) / 30))
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = {frame.shape for _, frame in Video(tmp_path / "both.ts").frames(range(12))}
    assert shapes == {(32, 48, 3)}


@pytest.mark.parametrize("limits, found", [(VideoLimits(pixels=100), "pixels"), (VideoLimits(frames=5), "frames")])
def test_limits_hold_before_anything_is_decoded(tmp_path, limits, found):
    content = write(tmp_path / "a.mp4", grey(10)).read_bytes()
    with pytest.raises(TooLarge, match=found):
        Video(content, limits=limits)


def test_lists_of_frame_files_are_one_video(tmp_path, dsr_processor):
    files = []
    for number in range(4):
        files.append(tmp_path / f"{number}.webp")
        Image.new("RGB", (56, 56), (40 * number,) * 3).save(files[-1], lossless=True)
    clip = write(tmp_path / "clip.mp4", grey(8, 56, 56))
    text = "<|vision_start|><|video_pad|><|vision_end|>What moves?"
    by_name = dsr_processor(text=[text], videos=[str(path) for path in files], return_tensors="pt")
    nested = dsr_processor(text=[text], videos=[files], return_tensors="pt")
    assert by_name["video_grid_thw"].tolist() == nested["video_grid_thw"].tolist() == [[2, 4, 4]]
    as_path = dsr_processor(text=[text], videos=clip, return_tensors="pt")
    as_text = dsr_processor(text=[text], videos=[str(clip)], return_tensors="pt")
    assert as_path["pixel_values_videos"].equal(as_text["pixel_values_videos"])
    mixed = dsr_processor(
        text=[text * 2], videos=[clip, np.stack([np.asarray(Image.open(f)) for f in files])], return_tensors="pt"
    )
    assert len(mixed["video_grid_thw"]) == 2


def test_patches_of_a_file_are_those_of_its_frames_processed_whole(tmp_path, dsr_processor):
    """A video is decoded and cut step by step; an odd last frame, and a budget that all frames share, as well."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    clip = write(tmp_path / "a.mp4", pixels)
    text = ["<|vision_start|><|video_pad|><|vision_end|>What moves?"]
    for options in ({"num_frames": 8}, {"num_frames": 1}, {"num_frames": 8, "cap_pixels_per_frame": True}):
        found = dsr_processor(text=text, videos=[clip], return_metadata=True, return_tensors="pt", **options)
        frames, metadata = decode_video(clip, options["num_frames"])
        capped = options.get("cap_pixels_per_frame", False)
        whole = dsr_processor.video_processor(
            [frames], do_sample_frames=False, cap_pixels_per_frame=capped, return_tensors="pt"
        )
        assert found["pixel_values_videos"].equal(whole["pixel_values_videos"])
        assert found["video_grid_thw"].equal(whole["video_grid_thw"])
        assert found["second_per_grid_ts"].tolist() == pytest.approx([2 / metadata.sampled_fps])
        assert (found["video_metadata"][0].height, found["video_metadata"][0].width) == (64, 96)
