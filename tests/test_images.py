"""How a picture becomes 32x32 pixels: which files are opened, what is white, which way is up, and what it may cost."""

import io
import os
import struct
import subprocess
import warnings

import numpy as np
import pytest
from helpers import RAMP, SHAPE, WIDE, chunk, decode, encoded, keyed, png, read_picture, refused, tiff
from PIL import Image

from pydmobilenet.data import images
from pydmobilenet.errors import BadFileError

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "GIF": {}}


def to_picture(content, name):
    return images.to_picture(content, name, resize=True, side=32, decoding="draft")


def grey(content):
    """The pixels (32, 32) of a picture whose three colours are the same."""
    pixels = decode(content).pixels
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])
    return pixels[0]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_read_each_format_to_the_pixel(kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    pixels = pixels // 128 * 255  # eight colours, which a GIF has room for
    (tmp_path / "x.txt").write_bytes(encoded(Image.fromarray(pixels), kind, **LOSSLESS[kind]))
    picture = read_picture(tmp_path / "x.txt")
    np.testing.assert_array_equal(picture.pixels, pixels.transpose(2, 0, 1))
    assert (picture.size, picture.transparent) == ((32, 32), False)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_read_the_first_frame(kind):
    frames = [Image.new("RGB", (32, 32), (value, value, value)) for value in (200, 90, 10)]
    options = {**LOSSLESS[kind], "save_all": True, "append_images": frames[1:]}
    assert (grey(encoded(frames[0], kind, **options)) == 200).all()


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        *(encoded(Image.new("RGB", (32, 32)), kind) for kind in ("PPM", "ICO", "TGA", "DDS", "PDF", "JPEG2000", "SGI")),
        b"",
        b"no image",
    ],
)
def test_no_other_format_is_opened(content, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", None)  # by which Ghostscript would be started
    monkeypatch.setattr(subprocess, "Popen", None)
    refused(content, "it cannot be read as an image .allowed: PNG, JPEG, WebP, BMP, TIFF, GIF.$")


BLACK = np.zeros((32, 32), np.uint8)
DRAWN = {
    "RGBA": Image.merge("RGBA", [Image.fromarray(BLACK)] * 3 + [Image.fromarray(SHAPE)]),
    "LA": Image.merge("LA", [Image.fromarray(BLACK), Image.fromarray(SHAPE)]),
}
INKED = Image.new("P", (32, 32))
INKED.putpalette([0, 0, 0])
INKED.putalpha(Image.fromarray(SHAPE))
KEYED = np.where(SHAPE > 0, 0, 255).astype(np.uint8)  # ink is 0
BITS = [np.packbits(row) for row in KEYED]
TRANSPARENT = {
    "RGBA, PNG": (encoded(DRAWN["RGBA"], "PNG"), SHAPE),
    "RGBA, WebP": (encoded(DRAWN["RGBA"], "WEBP", lossless=True, exact=True), SHAPE),
    "RGBA, TIFF": (encoded(DRAWN["RGBA"], "TIFF"), SHAPE),
    "LA, PNG": (encoded(DRAWN["LA"], "PNG"), SHAPE),
    "LA, TIFF": (encoded(DRAWN["LA"], "TIFF"), SHAPE),
    "palette and alpha, TIFF": (encoded(INKED, "TIFF"), SHAPE),
    "palette, alphas": (
        png(SHAPE // 50, 8, 3, chunk(b"PLTE", bytes(3 * 6)), chunk(b"tRNS", bytes([0, 9, 100, 9, 9, 255]))),
        SHAPE,
    ),
    "palette, one colour": (
        png(KEYED // 255, 8, 3, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\xff\0")),
        np.where(SHAPE > 0, 255, 0),
    ),
    "palette, GIF": (encoded(Image.fromarray(KEYED // 255).convert("P"), "GIF", transparency=1), KEYED ^ 255),
    "8-bit key": (png(KEYED // 5, 8, 0, chunk(b"tRNS", b"\0\x33")), KEYED ^ 255),
    "8-bit key of a colour": (png(np.repeat(KEYED // 5, 3, axis=1), 8, 2, chunk(b"tRNS", b"\0\x33" * 3)), KEYED ^ 255),
}
# The depth of their transparent colour is lost as Pillow decodes.
ODD_KEYS = {
    "1-bit key": png(BITS, 1, 0, chunk(b"tRNS", b"\0\1")),
    "2-bit key": keyed(2, 2),
    "4-bit key": keyed(4, 9),
    "16-bit key": png(np.where(SHAPE > 0, 0, 0x8123).astype(">u2").view(np.uint8), 16, 0, chunk(b"tRNS", b"\x81\x23")),
    "16-bit key of a colour": png(
        np.full((32, 96), 0x8123, ">u2").view(np.uint8), 16, 2, chunk(b"tRNS", b"\x81\x23" * 3)
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_a_black_drawing_on_a_transparent_ground_is_black_on_white(kind):
    content, alpha = TRANSPARENT[kind]
    assert abs(grey(content).astype(int) - (255 - alpha)).max() <= 1
    assert decode(content).transparent


def test_refuse_premultiplied_grey():
    refused(tiff(np.dstack([BLACK, SHAPE]).tobytes(), 8, 1, extra=(1,)), "it cannot be read as an image")


@pytest.mark.parametrize("kind", ODD_KEYS)
def test_refuse_a_transparent_colour_of_unknown_depth(kind):
    refused(ODD_KEYS[kind], "it has a transparent colour of unknown depth: save it with alpha instead")


def test_a_white_drawing_on_a_transparent_ground_does_not_vanish_in_silence():
    white = Image.merge("RGBA", [Image.fromarray(BLACK + 255)] * 3 + [Image.fromarray(SHAPE)])
    refused(encoded(white, "PNG"), "drawn in white on transparency and would vanish: give it a background")


def test_ignore_opaque_alpha():
    opaque = Image.new("RGBA", (32, 32), (10, 10, 10, 255))
    assert (grey(encoded(opaque, "PNG")) == 10).all()
    assert not decode(encoded(opaque, "PNG")).transparent


DEEP = {
    "grey, PNG": encoded(Image.fromarray(WIDE), "PNG"),
    "grey, TIFF": encoded(Image.fromarray(WIDE), "TIFF"),
    "grey, compressed TIFF": encoded(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"),
    "grey, big-endian TIFF": encoded(Image.frombytes("I;16B", (32, 32), WIDE.astype(">u2").tobytes()), "TIFF"),
    "grey and alpha, PNG": png(np.dstack([WIDE, WIDE * 0 + 65535]).astype(">u2").reshape(32, 64).view(np.uint8), 16, 4),
    "colours, PNG": png(np.dstack([WIDE] * 3).astype(">u2").reshape(32, 96).view(np.uint8), 16, 2),
    "colours and alpha, PNG": png(
        np.dstack([WIDE] * 3 + [WIDE * 0 + 65535]).astype(">u2").reshape(32, 128).view(np.uint8), 16, 6
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_grey_of_more_than_8_bits_is_scaled_to_8(kind):
    assert not decode(DEEP[kind]).transparent
    np.testing.assert_array_equal(grey(DEEP[kind]), WIDE >> 8)


def test_all_black_stays_black():
    assert (grey(encoded(Image.fromarray(np.zeros((32, 32), np.uint16)), "TIFF")) == 0).all()


TWELVE = np.array([[(a >> 4), (a & 15) << 4 | b >> 8, b & 255] for a, b in (RAMP * 4 + 3).reshape(-1, 2)], np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),  # 10 bits
        encoded(Image.fromarray((RAMP // 4).astype(np.uint16)), "PNG"),  # 8 bits
        tiff(TWELVE.tobytes(), 12, 1),
    ],
)
def test_refuse_16_bit_grey_with_fewer_bits(content):
    refused(content, "it has 16 bits but is almost black, or uses fewer bits: save it with 8 bits")


@pytest.mark.parametrize(
    "content",
    [
        tiff((65535 - WIDE).tobytes(), 16, 0),  # 0 is white
        tiff((RAMP * 31).astype("<i2").tobytes(), 16, 1, sample_format=2),  # with a sign
        encoded(Image.fromarray(WIDE.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 1023).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(np.where(RAMP == 7, np.nan, RAMP / 1023).astype(np.float32)), "TIFF"),
        tiff((RAMP / 1023).astype(np.float32).tobytes(), 32, 0, sample_format=3),
    ],
)
def test_refuse_grey_of_unknown_depth(content):
    refused(content, "it has grey of unknown depth: save it with 8 bits")


def test_refuse_16_bit_colours_with_fewer_bits():
    dark = np.repeat(RAMP, 3, axis=1).astype(">u2").view(np.uint8)  # 10 bits
    refused(png(dark, 16, 2), "it has 16 bits but is almost black, or uses fewer bits: save it with 8 bits")
    ink = np.dstack([RAMP * 0] * 3 + [SHAPE.astype(int) * 257]).astype(">u2").reshape(32, 128).view(np.uint8)
    np.testing.assert_array_equal(grey(png(ink, 16, 6)), 255 - SHAPE)  # whose alpha shows that all bits are used


def test_a_bmp_of_16_bits_a_pixel_may_be_black():
    masks = (0xF800, 0x07E0, 0x001F)
    sizes = (66 + 2048, 0, 66, 40, 32, 32, 1, 16, 3, 2048, 0, 0, 0, 0)
    assert (grey(struct.pack("<2sIIIIiiHHIIiiII3I", b"BM", *sizes, *masks) + bytes(2048)) == 0).all()


def test_convert_other_colours_as_pillow():
    photo = Image.fromarray(np.dstack([RAMP % 256, RAMP // 4, 255 - RAMP % 256]).astype(np.uint8))
    for image, kind in (
        (photo.convert("CMYK"), "TIFF"),
        (photo.convert("CMYK"), "JPEG"),
        (photo.convert("1"), "PNG"),
        (photo.convert("1"), "TIFF"),
        (photo.convert("P"), "PNG"),
        (photo.convert("P"), "BMP"),
        (photo, "JPEG"),
    ):
        content = encoded(image, kind)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(decode(content).pixels, expected)
        if image.mode == "CMYK":  # neither inverted nor dark
            assert abs(expected.astype(int) - np.asarray(photo).transpose(2, 0, 1)).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_before_it_is_resized(kind, orientation):
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:20, :32] = 250  # the corner where it begins
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encoded(Image.fromarray(pixels), kind, exif=exif, **LOSSLESS.get(kind, {})))
    assert picture.size == ((64, 40) if orientation < 5 else (40, 64))
    corners = picture.pixels[:, [[4, 4], [27, 27]], [[4, 27], [4, 27]]].mean(axis=0) > 128
    rows = [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
    ]
    assert corners.ravel().tolist() == rows[orientation - 1]


def test_a_grey_of_16_bits_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(WIDE), "PNG", exif=exif)), np.rot90(WIDE >> 8, -1))


NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)), "JPEG")


def test_a_large_jpeg_is_resized_over_all_pixels():
    whole = Image.open(io.BytesIO(NOISE))
    expected = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(NOISE, decoding="full").pixels, expected)
    assert abs(decode(NOISE).pixels.astype(int) - expected).max() <= 2  # of noise at the scale of pixels
    assert expected.std() < 10  # a mean of many pixels


@pytest.mark.parametrize(
    ("size", "decoded"), [((128, 128), (64, 64)), ((127, 2000), (127, 2000)), ((999, 777), (125, 98))]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_at_least_four_times_the_side_is_a_draft(size, decoded, mode):
    photo = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 50).convert(mode)
    content = encoded(photo, "JPEG")
    draft = Image.open(io.BytesIO(content))
    if min(size) >= 128:
        draft.draft(mode, (64, 64))
    assert draft.size == decoded
    expected = np.asarray(draft.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    picture = decode(content)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.size == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(4000, 3999), (400, 300)])
def test_a_draft_is_turned_and_has_the_size_of_the_whole(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.radial_gradient("L").crop((0, 0, 200, 128)).resize(size), "JPEG", exif=exif)
    draft, whole = decode(content), decode(content, decoding="full")
    assert draft[1:] == whole[1:]
    assert abs(draft.pixels.astype(int) - whole.pixels).max() <= 1


def test_a_draft_of_several_pictures_in_one_file():  # as phones make them
    photos = [Image.radial_gradient("L").resize((400, 300)).convert("RGB") for _ in range(2)]
    content = encoded(photos[0], "MPO", save_all=True, append_images=photos[1:])
    np.testing.assert_array_equal(decode(content).pixels, decode(encoded(photos[0], "JPEG")).pixels)


def test_phones_of_200_megapixels_are_read():
    content = encoded(Image.new("L", (16320, 12240), 90), "JPEG")
    assert decode(content).size == (16320, 12240)
    assert (decode(content).pixels == 90).all()
    with pytest.raises(BadFileError, match="exceeds limit"):
        decode(content, decoding="full")


@pytest.mark.parametrize(("size", "words"), [((65000, 65000), "4,225 megapixels .allowed: 400"), ((100, 1), "")])
def test_a_jpeg_of_too_many_pixels_is_refused_before_it_is_decoded(size, words, monkeypatch):
    height, width = (number.to_bytes(2, "big") for number in size)
    content = bytearray(encoded(Image.new("RGB", (400, 400)), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = height + width
    monkeypatch.setattr(Image.Image, "load", None)
    refused(bytes(content), f"it has {words}" if words else "it cannot be read as an image")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", None)
    refused(png([], 1, 0, size=(60_000, 60_000)), "it cannot be read as an image: Image size .* exceeds limit")


def test_read_the_orientation_in_xmp():
    comment = b'<x:xmpmeta xmlns:tiff="t" tiff:Orientation="6"/>'
    turned = png([[90] * 40] * 30, 8, 0, chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + comment), size=(40, 30))
    assert decode(turned).size == (30, 40)


def test_threads_decode_in_order_and_leave_the_process_as_it_was(monkeypatch):
    monkeypatch.setattr(images, "available_processors", lambda: 4)
    shades = [Image.new("RGB", (400, 400), (value, value, value)) for value in range(60)]
    contents = [encoded(shade, "TIFF", compression="tiff_lzw") for shade in shades]
    contents[7] = contents[7][:-20]
    contents[50] = b"no image"
    filters, stderr = list(warnings.filters), os.fstat(2)
    read = images.read_all(range(60), lambda value: to_picture(contents[value], f"image {value}"))
    for value, each in enumerate(read):
        if value in (7, 50):
            assert str(each).startswith(f"image {value} cannot be read as an image")
        else:
            assert (each.pixels == value).all()
    assert warnings.filters == filters
    assert os.path.samestat(os.fstat(2), stderr)


def turned(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    return encoded(Image.fromarray(pixels), kind, exif=exif)


FILES = {**{name: content for name, (content, _) in TRANSPARENT.items()}, **DEEP}
FILES.update((f"turned, {kind}", turned(kind)) for kind in ("JPEG", "TIFF", "PNG"))
FORGOTTEN = {"8-bit key"}  # once decoded, its depth is unknown


def in_memory(*given):
    """The pictures of images that a caller has, or what is wrong with them."""
    return images.read_all(range(len(given)), lambda number: to_picture(given[number], f"image {number}"))


@pytest.mark.parametrize("kind", FILES)
def test_decode_an_opened_image_as_its_file(kind):
    opened, expected = Image.open(io.BytesIO(FILES[kind])), decode(FILES[kind])
    before = opened.mode, opened.info.get("transparency")
    first, *others = in_memory(opened, opened, opened)  # of which the first one decodes it
    for found in [first] if kind in FORGOTTEN else [first, *others]:
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found[1:] == expected[1:]
    assert all(isinstance(found, BadFileError) == (kind in FORGOTTEN) for found in others)
    assert (opened.mode, opened.info.get("transparency")) == before
    opened.load()  # it is still open


def test_report_errors_of_images_in_memory():
    assert str(in_memory(np.zeros((0, 9, 3), np.uint8))[0]) == "image 0 has no pixels"


def test_name_a_missing_file(tmp_path):
    with pytest.raises(BadFileError, match=r"x\.png cannot be read: No such file"):
        read_picture(tmp_path / "x.png")
