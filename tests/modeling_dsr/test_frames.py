"""Video files: which frames come back, turned which way, and what is said about files that do not work."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from dsr_toolkit.demo.clip import CLIP, FPS, FRAMES, HEIGHT, WIDTH
from modeling_dsr.frames import decode_video, sample_frame_indices

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
QUARTER_TURN = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise, as phones write it


def write(path: Path, frames: np.ndarray, codec: str = "libx264", **options) -> Path:
    """Encode frames `[T, H, W, 3]` at 10 frames per second."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        container.start_encoding()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def ramp() -> np.ndarray:
    """Nine frames of one grey each, brighter by 25 every time."""
    return np.repeat(np.arange(20, 245, 25, dtype=np.uint8), 64 * 96 * 3).reshape(9, 64, 96, 3)


def test_frames_and_timing_of_the_carried_clip():
    frames, metadata = decode_video(CLIP, num_frames=32)
    assert frames.shape == (32, HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
    assert metadata.total_num_frames == FRAMES and metadata.fps == FPS and metadata.duration == FRAMES / FPS
    assert np.array_equal(metadata.frames_indices, sample_frame_indices(FRAMES, 32))


def test_the_frames_are_those_of_the_indices(tmp_path, ramp):
    frames, metadata = decode_video(write(tmp_path / "ramp.mp4", ramp), num_frames=4)
    assert metadata.frames_indices.tolist() == [0, 3, 5, 8]
    assert np.abs(frames.mean((1, 2, 3)) - ramp[[0, 3, 5, 8]].mean((1, 2, 3))).max() < 4


@pytest.mark.parametrize("name, codec", [("ramp.mkv", "libx264"), ("ramp.webm", "libvpx-vp9"), ("ramp.avi", "mpeg4")])
def test_containers_that_do_not_announce_their_length(tmp_path, ramp, name, codec):
    frames, metadata = decode_video(write(tmp_path / name, ramp, codec))
    assert len(frames) == 8 and metadata.total_num_frames == 9 and metadata.fps == 10


def test_a_single_frame(tmp_path, ramp):
    frames, metadata = decode_video(write(tmp_path / "one.mp4", ramp[:1]))
    assert len(frames) == 1 and metadata.frames_indices.tolist() == [0]


def test_rotation_is_applied(tmp_path):
    file = CLIP.read_bytes()
    track = file.index(b"tkhd")
    matrix = file.index(IDENTITY, track)
    turned_file = tmp_path / "turned.mp4"
    turned_file.write_bytes(file[:matrix] + QUARTER_TURN + file[matrix + len(IDENTITY) :])
    upright, turned = decode_video(CLIP, 2)[0], decode_video(turned_file, 2)[0]
    assert np.array_equal(turned, np.rot90(upright, k=-1, axes=(1, 2)))


def test_a_missing_file():
    with pytest.raises(ValueError, match="no folder, image or video at 'nowhere.mp4'"):
        decode_video("nowhere.mp4")


@pytest.mark.parametrize("content", [b"", b"words, not pictures", CLIP.read_bytes()[: CLIP.stat().st_size // 2]])
def test_a_file_that_is_no_video(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.mp4.*re-encode it"):
        decode_video(path)


def test_a_video_that_is_cut_short(tmp_path, ramp):
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 96, 3), dtype=np.uint8)
    path = write(tmp_path / "whole.mp4", noise, movflags="faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ValueError, match=r"cut short: \d+ of its 30 frames"):
        decode_video(cut)


def test_a_video_without_frames(tmp_path, ramp):
    with pytest.raises(ValueError, match="zero frames"):
        decode_video(write(tmp_path / "empty.avi", ramp[:0], "mpeg4"))


def test_a_file_without_a_video_track(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video track"):
        decode_video(path)
