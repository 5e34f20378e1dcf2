"""Every kind of picture becomes the same upright RGB on white."""

import io

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

import mllm.images
from mllm.images import MEAN, STD, normalise, open_picture, read_pixels, to_pixels


def encoded(picture: Image.Image, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def corner(picture: Image.Image) -> tuple[int, ...]:
    return picture.getpixel((0, 0))


def half_red(mode: str = "RGB", size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", size, "blue")
    picture.paste("red", (0, 0, size[0] // 2, size[1]))
    return picture.convert(mode)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert corner(open_picture(encoded(clear))) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert corner(open_picture(encoded(half, "WEBP", lossless=True))) == (255, 127, 127)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert corner(open_picture(encoded(grey))) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_lies_on_white():
    picture = half_red("P")
    data = encoded(picture, transparency=picture.getpixel((0, 0)))
    assert corner(open_picture(data)) == (255, 255, 255)


def test_a_grey_transparent_colour_lies_on_white():
    data = encoded(Image.new("L", (4, 4), 7), transparency=7)
    assert corner(open_picture(data)) == (255, 255, 255)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    picture = open_picture(encoded(half_red(size=(80, 40)), "JPEG", exif=exif, quality=95))
    assert picture.size == (40, 80)
    top, bottom = picture.getpixel((20, 10)), picture.getpixel((20, 70))
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]


def test_cmyk_becomes_rgb():
    picture = open_picture(encoded(half_red("CMYK", (32, 32)), "JPEG", quality=95))
    assert picture.mode == "RGB"
    assert corner(picture)[0] > 200 > 60 > corner(picture)[2]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (32896, 128), (65535, 255)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_tones(value, expected, kind):
    picture = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert corner(open_picture(encoded(picture, kind))) == (expected,) * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "YCbCr", "HSV"])
def test_an_open_picture_equals_its_file(mode):
    picture = half_red(mode)
    assert open_picture(picture).mode == "RGB"
    if mode not in ("YCbCr", "HSV"):
        assert open_picture(picture).tobytes() == open_picture(encoded(picture)).tobytes()


def test_animations_show_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = corner(open_picture(data))
        assert red > 240 > 20 > max(green, blue)


def test_a_path_reads_as_its_bytes(tmp_path):
    (tmp_path / "p.png").write_bytes(encoded(half_red()))
    assert open_picture(tmp_path / "p.png").tobytes() == half_red().tobytes()
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "absent.png")


def test_the_size_is_checked_before_decoding():
    data = encoded(Image.new("1", (3000, 3000)))
    with pytest.raises(ValueError, match="3000 x 3000 pixels; at most 1,000,000"):
        open_picture(data, max_pixels=1_000_000)
    # A header alone that claims 60000 x 60000 pixels.
    header = bytearray(encoded(Image.new("1", (8, 8))))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match="picture"):
        open_picture(bytes(header))


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"],
)
def test_what_is_no_picture_is_said_so(data):
    with pytest.raises(ValueError, match="not a picture"):
        open_picture(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it warns of the cut before it raises
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_picture_is_a_value_error_wherever_it_is_cut(kind):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for length in range(0, len(data) * 3 // 4, 13):
        with pytest.raises(ValueError, match="picture"):
            open_picture(data[:length])


def test_a_tiff_whose_offsets_are_fractions_is_a_value_error():
    data = encoded(Image.new("L", (20, 14)), "TIFF")
    offsets = b"\x11\x01\x04\0"  # StripOffsets, of type LONG; then RATIONAL
    assert offsets in data
    with pytest.raises(ValueError, match="broken picture"):
        open_picture(data.replace(offsets, b"\x11\x01\x05\0"))


def test_crop_keeps_the_centre_and_squash_keeps_everything():
    wide = Image.new("RGB", (40, 10), "blue")
    wide.paste("red", (15, 0, 25, 10))
    cropped = to_pixels(wide, 8, "crop")
    assert cropped.shape == (3, 8, 8)
    assert cropped.dtype == np.uint8
    assert cropped[0].min() > 200 and cropped[2].max() < 60
    squashed = to_pixels(wide, 8, "squash")
    assert squashed[0, :, 0].max() < 60 and squashed[2, :, 0].min() > 200
    with pytest.raises(ValueError, match="crop or squash"):
        to_pixels(wide, 8, "stretch")


def test_pixels_of_the_right_size_are_left_alone():
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for resize in ("crop", "squash"):
        assert (to_pixels(Image.fromarray(values), 16, resize) == values.transpose(2, 0, 1)).all()


def test_normalise_is_clips():
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    mean, std = np.array(MEAN).reshape(3, 1, 1), np.array(STD).reshape(3, 1, 1)
    expected = (values / 255 - mean) / std
    got = normalise(torch.from_numpy(values))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_pixels_match_transformers_on_a_square_picture():
    from transformers import CLIPImageProcessorPil

    values = np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    theirs = processor(Image.fromarray(values), return_tensors="pt")["pixel_values"][0]
    ours = normalise(torch.from_numpy(to_pixels(Image.fromarray(values), 32, "squash")))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def smooth(height, width, seed=0):
    """A smooth random field with a little noise, as photographs are; uint8 (H, W, 3)."""
    draws = np.random.default_rng(seed)
    values = np.zeros((height, width, 3), np.float32)
    for side in (3, 9, 27):
        coarse = draws.normal(0, 60 / side**0.3, (side, side, 3)).astype(np.float32)
        for c in range(3):
            layer = Image.fromarray(coarse[..., c]).resize((width, height), Image.BICUBIC)
            values[..., c] += np.asarray(layer)
    values += draws.normal(0, 4, values.shape)
    return np.clip(values + 128, 0, 255).astype(np.uint8)


def both_decoders(data, monkeypatch):
    """What `open_picture` gives with simplejpeg and without: pixels, or the error's text."""
    found = []
    for module in (simplejpeg, None):
        monkeypatch.setattr("mllm.images.simplejpeg", module)
        try:
            found.append(open_picture(data).tobytes())
        except ValueError as error:
            found.append(str(error))
    return found


def test_simplejpeg_gives_pils_pixels_to_the_bit(monkeypatch):
    """Else `make demo` with and without the extra `fast` would be two runs."""
    num_compared = num_fast = 0
    fast = mllm.images._plain_jpeg

    def counted(*arguments):
        nonlocal num_fast
        found = fast(*arguments)
        num_fast += found is not None
        return found

    monkeypatch.setattr("mllm.images._plain_jpeg", counted)
    sizes = ((224, 224), (1, 1), (7, 13), (17, 33), (225, 223), (300, 41))
    for number, (height, width) in enumerate(sizes):
        picture = Image.fromarray(smooth(height, width, number))
        for quality in (5, 40, 75, 92, 100):
            for subsampling in (0, 1, 2):
                for progressive in (False, True):
                    for mode in ("RGB", "L", "CMYK"):
                        settings = dict(
                            quality=quality, subsampling=subsampling, progressive=progressive
                        )
                        data = encoded(picture.convert(mode), "JPEG", **settings)
                        one, two = both_decoders(data, monkeypatch)
                        assert one == two, (height, width, mode, settings)
                        num_compared += 1
    assert num_compared == 540 and num_fast == 360  # CMYK is left to PIL


@pytest.mark.parametrize("orientation", range(1, 9))
def test_simplejpeg_leaves_turned_pictures_to_pil(orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth(20, 34)), "JPEG", exif=exif)
    one, two = both_decoders(data, monkeypatch)
    assert one == two
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="%d"/></x:xmpmeta>'
    data = encoded(Image.fromarray(smooth(20, 34)), "JPEG", xmp=xmp % orientation)
    one, two = both_decoders(data, monkeypatch)
    assert one == two


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_jpegs_are_what_they_are_without_simplejpeg(monkeypatch):
    data = encoded(Image.fromarray(smooth(48, 40)), "JPEG", quality=80)
    draws = np.random.default_rng(3)
    broken = [data[:length] for length in range(0, len(data), 37)]
    for _ in range(150):
        changed = bytearray(data)
        changed[int(draws.integers(len(data)))] = int(draws.integers(256))
        broken.append(bytes(changed))
    broken.append(data + b"trailing bytes")
    for case in broken:
        one, two = both_decoders(case, monkeypatch)
        assert one == two
    with pytest.raises(ValueError, match="at most 100 in all"):
        open_picture(data, max_pixels=100)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (40, 32), (31, 33)])
def test_read_pixels_is_open_and_resize_in_one_step(width, height, resize, monkeypatch):
    draws = np.random.default_rng(0)
    picture = Image.fromarray(draws.integers(0, 256, (height, width, 3)).astype(np.uint8))
    data = encoded(picture, "JPEG")
    found = read_pixels(data, 32, resize)
    monkeypatch.setattr(mllm.images, "simplejpeg", None)
    assert np.array_equal(found, to_pixels(open_picture(data), 32, resize))
    assert found.shape == (3, 32, 32) and found.flags.c_contiguous
