"""What people have as images, read rightly by the one reader."""

import functools
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dsr.frames import find_frames, read_frames
from modeling_dsr.image_reader import TooLarge, list_images, read_image, read_with_alpha, unreadable_images

LEFT, RIGHT = (200, 30, 30), (30, 30, 200)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), LEFT)
    image.paste(RIGHT, (width // 2, 0, width, height))
    return image


def close(pixel, colour, tolerance: int = 12) -> bool:
    return all(abs(int(a) - b) <= tolerance for a, b in zip(pixel, colour))


@pytest.mark.parametrize("as_pillow", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_camera_was_held(tmp_path, orientation, as_pillow):
    upright = halves()
    undo = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    stored = upright
    for step in undo[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    given = Image.open(tmp_path / "photo.jpg") if as_pillow else tmp_path / "photo.jpg"
    found = read_image(given)
    assert found.size == upright.size
    assert close(found.getpixel((5, 10)), LEFT) and close(found.getpixel((35, 10)), RIGHT)
    assert np.array_equal(np.asarray(read_image(found)), np.asarray(found))  # turned once


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, kind):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"grey.{kind}")
    found = np.asarray(read_image(tmp_path / f"grey.{kind}"))
    assert np.abs(found[..., 0].astype(int).ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((4, 4, 3), 0.5), 128),
        (np.full((4, 4, 3), 128.0, np.float32), 128),
        (np.full((4, 4), 128, np.uint8), 128),
        (np.full((4, 4, 3), 128, np.int64), 128),
        (np.full((4, 4, 3), 128 * 257, np.uint16), 128),
        (np.ones((4, 4), bool), 255),
        (torch.full((3, 4, 4), 0.5), 128),
        (torch.full((3, 4, 4), 128, dtype=torch.uint8), 128),
        (torch.full((1, 4, 4), 0.5, dtype=torch.bfloat16), 128),
    ],
)
def test_arrays_of_every_range(array, expected):
    assert read_image(array).getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize("array", [np.full((4, 4, 3), 981.0), np.full((4, 4, 3), -1), np.full((4, 4, 3), np.nan)])
def test_values_of_no_picture_are_refused(array):
    with pytest.raises(ValueError, match="values from|not finite"):
        read_image(array, "`images[0]`")


def transparent(mode: str) -> Image.Image:
    rgba = Image.new("RGBA", (8, 4), (10, 20, 30, 0))
    rgba.paste((200, 30, 30, 255), (4, 0, 8, 4))
    if mode == "P":
        palette = Image.new("P", (8, 4), 0)
        palette.putpalette([10, 20, 30, 200, 30, 30])
        palette.paste(1, (4, 0, 8, 4))
        palette.info["transparency"] = 0
        return palette
    return rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(tmp_path, mode):
    transparent(mode).save(tmp_path / "cut.png")
    image, opaque = read_with_alpha(tmp_path / "cut.png")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((6, 2))[0] < 210
    assert opaque.tolist() == [[False] * 4 + [True] * 4] * 4
    assert read_with_alpha(halves())[1] is None


@pytest.mark.parametrize("kind", ["webp", "avif", "tif", "bmp", "gif", "png", "jpg", "heic"])
def test_every_format_is_an_image(tmp_path, kind):
    if kind == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow was built without AVIF")
    if kind == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    halves().save(tmp_path / f"a.{kind}")
    assert close(read_image(tmp_path / f"a.{kind}").getpixel((5, 10)), LEFT, 25)
    assert [path.name for path in list_images(tmp_path)[0]] == [f"a.{kind}"]
    assert len(find_frames([tmp_path / f"a.{kind}"] * 2)) == 2


def test_a_phone_s_picture_with_extras_is_its_first_picture(tmp_path):
    halves().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert read_image(tmp_path / "phone.jpg").size == (40, 20)


def test_of_several_pages_the_first_is_the_picture(tmp_path):
    halves().save(tmp_path / "scan.tif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert close(read_image(tmp_path / "scan.tif").getpixel((5, 10)), LEFT)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_no_image_and_found_before_the_work(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    halves().save(path, save_all=True, append_images=[Image.new("RGB", (40, 20))])
    with pytest.raises(ValueError, match="animation"):
        read_image(path)
    assert list(unreadable_images([path])) == [str(path)]


def test_one_grey_of_sixteen_bits_may_be_transparent(tmp_path):
    values = np.full((20, 40), 257 * 60, np.uint16)
    values[:, :10] = 1234
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1234)
    image, opaque = read_with_alpha(tmp_path / "a.png")
    assert image.getpixel((5, 5)) == (255, 255, 255) and image.getpixel((20, 5)) == (60, 60, 60)
    assert opaque.sum() == 20 * 30


def test_an_address_is_read_as_a_file(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "a.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert read_image(f"{place}/a.png").getpixel((0, 0)) == (255, 255, 255)
        with pytest.raises(ValueError, match="cannot be fetched.*404"):
            read_image(f"{place}/b.png")
        server.shutdown()


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "png")
    with pytest.raises(TooLarge, match="2000×2000 pixels"):
        read_image(buffer.getvalue(), max_pixels=1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooLarge, match="pixels"):
        read_image(buffer.getvalue())


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="a.png"):
        read_image(tmp_path / "a.png")


def test_unreadable_files_are_named_all_at_once(tmp_path):
    halves(400, 400).save(tmp_path / "good.jpg")
    content = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "no.png").write_text("no image")
    assert {name.rpartition("/")[2] for name in unreadable_images(list_images(tmp_path)[0])} == {"cut.jpg", "no.png"}


def test_folders_in_natural_order_without_litter(tmp_path):
    for name in ("10.png", "2.png", "1.PNG", "img2b.png", "img10a.png", "img10a²3.png", "._1.png"):
        halves().save(tmp_path / name, format="png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_text("")
    images, others = list_images(tmp_path)
    assert [path.name for path in images] == ["1.PNG", "2.png", "10.png", "img2b.png", "img10a.png", "img10a²3.png"]
    assert [path.name for path in others] == ["notes.txt"]
    with pytest.warns(UserWarning, match="notes.txt"):
        assert [frame.name for frame in read_frames(tmp_path)][:3] == ["1.PNG", "2.png", "10.png"]


@pytest.mark.parametrize("kind", ["sixteen bits", "held sideways", "transparent"])
def test_a_chat_reads_pictures_as_everybody_else(dsr_processor, tmp_path, kind):
    path = tmp_path / ("photo.jpg" if kind == "held sideways" else "picture.png")
    if kind == "sixteen bits":
        Image.fromarray((np.arange(56 * 84, dtype=np.uint16) * 13).reshape(56, 84)).save(path)
    elif kind == "transparent":
        Image.new("RGBA", (84, 56), (10, 20, 30, 0)).save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        halves(84, 56).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    expected = dsr_processor(text=["<|vision_start|><|image_pad|><|vision_end|>What?"], images=[read_image(path)])
    turn = {"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": "What?"}]}
    found = dsr_processor.apply_chat_template([turn], tokenize=True, return_dict=True, return_tensors="pt")
    assert found["image_grid_thw"].tolist() == [list(row) for row in expected["image_grid_thw"]]
    assert torch.equal(found["pixel_values"], torch.as_tensor(np.asarray(expected["pixel_values"])))
