"""Damaged pictures of each format end in pixels or in one error, whatever Pillow and the libraries below it say."""

import random
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import ROOT, WIDE, decode, encoded, keyed, refused, tiff
from PIL import Image, ImageFile

from pydmobilenet.errors import BadFileError

EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010F: "maker", 0x011A: 72.0, 0x9003: "2026:01:01 00:00:00"})
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
SOUND = {
    "PNG": [encoded(PHOTO, "PNG", exif=EXIF), encoded(PHOTO.convert("LA"), "PNG"), keyed(2, 2)],
    "JPEG": [encoded(PHOTO, "JPEG", exif=EXIF, dpi=(72, 72)), encoded(PHOTO.convert("CMYK"), "JPEG", progressive=True)],
    "WEBP": [encoded(PHOTO, "WEBP", exif=EXIF), encoded(PHOTO.convert("RGBA"), "WEBP", lossless=True)],
    "BMP": [encoded(PHOTO, "BMP"), encoded(PHOTO.convert("P"), "BMP"), encoded(PHOTO.convert("1"), "BMP")],
    "TIFF": [
        encoded(PHOTO, "TIFF", exif=EXIF),
        *(encoded(PHOTO, "TIFF", compression=each) for each in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        encoded(Image.fromarray(WIDE), "TIFF"),
    ],
    "GIF": [encoded(PHOTO, "GIF"), encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)])],
}


def mutated(content, generator):
    """A content with some of its bytes changed, cut out, doubled, or all from one on missing."""
    content = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        place, length = generator.randrange(len(content)), generator.choice([1, 1, 2, 4, 30])
        # Half of the time among the headers: what the pixels are like makes few differences.
        place = generator.randrange(min(len(content), 200)) if generator.random() < 0.5 else place
        way = generator.randrange(6)
        if way == 0:
            content[place : place + length] = generator.randbytes(length)
        elif way == 1:
            content[place] ^= 1 << generator.randrange(8)
        elif way == 2:
            content[place : place + length] = bytes([generator.choice([0, 1, 127, 255])]) * length
        elif way == 3 and len(content) > length + 1:
            del content[place : place + length]
        elif way == 4:
            content[place:place] = content[place : place + length]
        elif generator.random() < 0.1:
            del content[max(1, place) :]
    return bytes(content)


@pytest.mark.parametrize("cases", [60, pytest.param(2000, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("kind", SOUND)
def test_decode_or_refuse_damaged_files(kind, cases, capfd):
    generator = random.Random(0)
    contents = [mutated(SOUND[kind][number % len(SOUND[kind])], generator) for number in range(cases)]
    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in contents:
            try:
                pixels = decode(content).pixels
            except BadFileError as error:
                errors.append(str(error))
            else:
                assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.uint8)
    assert 0 < len(errors) < cases  # some are still sound
    assert all(error.startswith("it ") and "\n" not in error for error in errors)
    if kind != "TIFF":  # of which libtiff says more
        assert capfd.readouterr() == ("", "")  # what the decoders' C code says would come here


@pytest.mark.parametrize("lenient", [False, True])  # as other libraries set it, for all
@pytest.mark.parametrize("kind", SOUND)
def test_a_truncated_file_is_refused(kind, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    for content in SOUND[kind]:
        refused(content[: len(content) // 2], "it cannot be read as an image")


def test_keep_pillows_log_off_standard_error():
    content = tiff(bytes(1024), 8, 1).replace(
        struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 4, 1, 1 << 30)
    )
    code = "import sys; from pydmobilenet.data import images\nread = lambda content: images.to_picture("
    code += "content, 'it', True, 32, 'draft')\nprint(*images.read_all([sys.stdin.buffer.read()], read))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        input=content,
        cwd=ROOT,
        capture_output=True,
    )
    assert answer.stdout.startswith(b"it cannot be read as an image")
    assert answer.stderr == b""
