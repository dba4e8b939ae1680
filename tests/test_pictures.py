"""Pictures of every kind that people have: what they show, or in what words they are refused."""

import sys
import types

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from minimodel.data import pictures
from minimodel.data.pictures import find_gap, list_frames, natural_order, read_picture
from minimodel.data.video import Clip, read_image
from tests.test_video import film

MARK = 0x0112  # of orientation, in EXIF
# What turns a picture as it is stored into how it was taken, by EXIF's number.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.fixture(scope="module")
def picture():
    """Smooth, so that it survives JPEG, and unlike itself however it is turned."""
    y, x = np.mgrid[0:32, 0:48] / 48
    return (255 * np.stack([x, y, (x - y) ** 2], -1)).astype(np.uint8)


def save(array, path, orientation=1, **options):
    mark = Image.Exif()
    mark[MARK] = orientation
    Image.fromarray(array).save(path, exif=mark, **options)
    return path


def assert_shows(path, expected, tolerance=0.02):
    image = read_image(path)
    assert image.shape == (3, *expected.shape[:2])
    assert (image - torch.from_numpy(expected / 255.0).permute(2, 0, 1)).abs().mean() < tolerance


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_container_says_how_the_camera_was_held(tmp_path, picture, kind, orientation):
    """All eight ways, in all that carry them; with no suffix at all."""
    options = {} if kind in ("PNG", "TIFF") else {"quality": 95}
    path = save(picture, tmp_path / "photo", orientation, format=kind, **options)
    assert_shows(path, UPRIGHT[orientation](picture))


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPEG", "a.png", "a.gif", "a.mp4", "a:b.jpg", "%d.jpg", "a"])
def test_what_is_in_the_file_decides_not_its_name(tmp_path, picture, name):
    path = save(picture, tmp_path / name, 6, format="JPEG", quality=95)
    assert_shows(path, UPRIGHT[6](picture))
    assert_shows(path.rename(tmp_path / "a.tif"), UPRIGHT[6](picture))


def test_a_film_by_the_name_of_a_picture_shows_its_first_frame(tmp_path):
    shown = read_image(film(tmp_path / "a.mp4", count=3).rename(tmp_path / "a.jpg"))
    assert shown[0, :8, :8].mean() > 0.8 and shown[1].mean() < 0.1


@pytest.fixture(scope="module")
def half_seen():
    """Red on the right, nothing on the left; there hides black."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, 8:] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


def quantised(image):
    return image.quantize(4)


def keyed(image):  # one colour of several means: nothing
    return Image.fromarray(np.asarray(image)[..., :3].copy())


@pytest.mark.parametrize(
    "convert, name, options",
    [
        (lambda image: image, "a.png", {}),
        (quantised, "a.png", {}),
        (keyed, "a.png", dict(transparency=(0, 0, 0))),
        (lambda image: quantised(keyed(image)), "a.png", dict(transparency=0)),
        (lambda image: image, "a.webp", dict(lossless=True)),
        (lambda image: image, "a.tif", {}),
        (lambda image: image, "a.avif", dict(quality=100)),
        (lambda image: image, "a.gif", {}),
    ],
)
def test_transparency_lies_on_white(tmp_path, half_seen, convert, name, options):
    image = convert(half_seen)
    if options.get("transparency") == 0:
        options = dict(transparency=image.getpixel((0, 0)))
    image.save(tmp_path / name, **options)
    shown = read_image(tmp_path / name)
    assert (shown[:, :, :7] > 0.98).all()
    assert (shown[:, :, 9:] - torch.tensor([1.0, 0, 0]).view(3, 1, 1)).abs().max() < 0.04
    assert torch.equal(next(Clip(tmp_path / name).decode())[1], (shown * 255).round().byte())  # and as a film


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((16, 16), 51, np.uint8), [0.2, 0.2, 0.2]),
        (np.full((16, 16), 13107, np.uint16), [0.2, 0.2, 0.2]),
        (np.full((16, 16, 3), (13107, 26214, 65535), np.uint16), [0.2, 0.4, 1.0]),
        (np.full((16, 16, 4), (13107, 26214, 65535, 65535), np.uint16), [0.2, 0.4, 1.0]),
        (np.ones((16, 16), bool), [1.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_every_depth_become_rgb(tmp_path, array, expected, order):
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, byteorder=order)
    assert torch.allclose(read_image(tmp_path / "a.tif").mean((1, 2)), torch.tensor(expected), atol=0.003)


def heic(path):
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))


def cut(path):
    save(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), path.with_name("whole.jpg"))
    path.write_bytes(path.with_name("whole.jpg").read_bytes()[:1500])


def floating(path, channels=()):
    tifffile.imwrite(path, np.random.rand(16, 16, *channels).astype(np.float32))


def planar(path):
    tifffile.imwrite(path, np.zeros((3, 16, 16), np.uint8), planarconfig="separate", photometric="rgb")


@pytest.mark.parametrize(
    "make, message",
    [
        (heic, "HEIC: install pillow-heif, or open it in an image viewer and save it as PNG or JPEG"),
        (lambda path: path.write_bytes(b""), "the file is empty: download or copy it anew"),
        (lambda path: path.write_text("<!DOCTYPE html>\n<html>404</html>"), "a web page: download the picture itself"),
        (lambda path: path.write_text("\n <html>not found</html>"), "a web page: download the picture itself"),
        (lambda path: path.write_text('<?xml version="1.0"?>\n<svg width="9">'), "a drawing .SVG.: .* save it as PNG"),
        (lambda path: path.write_bytes(b"%PDF-1.4\n"), "a PDF: .* save it as PNG or JPEG"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and more"), "a ZIP archive: unpack it first"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        (cut, "it breaks off: download or copy it anew"),
        (floating, "floating-point numbers.*: .* save it as PNG or JPEG"),
        (lambda path: floating(path, (3,)), "floating-point numbers: .* save it as PNG or JPEG"),
        (planar, "planar TIFF .*: .* save it as PNG or JPEG"),
        (lambda path: path.write_bytes(bytes(range(256))), "no known format: .* save it as PNG or JPEG"),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_what_cannot_be_read_is_refused_in_words_that_help(tmp_path, make, message, name):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert "backend" not in str(caught.value)


def test_heic_is_read_where_a_decoder_is_installed(tmp_path, picture, monkeypatch):
    """A stand-in for pillow-heif, which registers itself with Pillow in the same way."""
    heic(tmp_path / "a.jpg")

    class Opened(Image.Image):
        format = "HEIF"

    def open_heif(file, name):
        image = Image.fromarray(picture)
        image.format = "HEIF"
        return image

    def register():
        Image.register_open("HEIF", open_heif, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert_shows(tmp_path / "a.jpg", picture)
    assert len(Clip(tmp_path / "a.jpg")) == 1


def test_a_mark_of_orientation_that_is_broken_says_nothing(tmp_path, picture):
    path = save(picture, tmp_path / "a.jpg", 6, quality=95)
    data = path.read_bytes()
    at = data.index(b"Exif")
    path.write_bytes(data[: at + 8] + b"\xff" * 12 + data[at + 20 :])
    assert read_image(path).shape in ((3, 32, 48), (3, 48, 32))


def test_pictures_too_large_are_refused_before_they_take_memory(tmp_path, monkeypatch):
    Image.new("L", (8, 17000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="8 x 17000 pixels, sides must be 8 to 16384"):
        read_picture(tmp_path / "a.png")


# Folders


def test_frames_come_in_the_order_of_their_numbers_whatever_their_kind(tmp_path):
    for number, suffix in enumerate((".png", ".JPG", ".jpeg", ".WebP") * 3):
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(tmp_path / f"frame_{number + 1}{suffix}")
    for name in ("._frame_3.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(99))
    clip = Clip(tmp_path)
    shades = [round(float(frame.float().mean()) / 20) for _, frame in clip.decode()]
    assert shades == list(range(12)) and len(clip) == 12


@pytest.mark.parametrize(
    "names, gap",
    [
        (["0001", "0002", "0003"], None),
        (["0005", "0008", "0011"], "of frames 5 to 11 4 are missing"),
        (["clip7_1", "clip7_2", "clip7_4"], "of frames 1 to 4 1 are missing"),
        (["a", "b"], None),
        (["5"], None),
    ],
)
def test_gaps_are_said_once(tmp_path, recwarn, names, gap):
    for name in names:
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    said = find_gap(list_frames(tmp_path))
    assert said is None if gap is None else said.startswith(gap)
    clip = Clip(tmp_path)
    assert len(list(clip.decode())) == len(list(clip.decode())) == len(names)
    assert len(recwarn.list) == (gap is not None)


def test_a_frame_that_cannot_be_read_is_left_out_and_counted(tmp_path):
    for number in range(5):
        Image.new("RGB", (16, 16), (50 * number,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    clip = Clip(tmp_path)
    with pytest.warns(UserWarning, match="1 of 5 frames can't be decoded and are left out"):
        numbers = [number for number, _ in clip.decode()]
    assert numbers == [0, 1, 3, 4] and clip.missing == {2}
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no frame can be decoded .*the file is empty"):
        list(Clip(tmp_path).decode())


def test_natural_order_never_fails(tmp_path):
    names = ["a", "1", "a1", "a01", "10", "2", "1a", "a-1", "ü2", "a10b2", "a10b10", "²"]
    ordered = [path.name for path in sorted((tmp_path / name for name in names), key=natural_order)]
    assert ordered.index("2") < ordered.index("10") and ordered.index("a10b2") < ordered.index("a10b10")
    assert sorted(ordered) == sorted(names)


def test_every_hint_is_a_pattern_that_can_match():
    assert all(isinstance(start, int) and hint for start, _, hint in pictures.HINTS)
