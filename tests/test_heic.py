"""Pictures of iPhones: read with pillow-heif, and named without it."""

import io
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, commander, decode, make_classes, refused
from PIL import Image

from pydmobilenet.data import folder, get_dataset, images
from pydmobilenet.errors import BadFileError

COMMAND = "pip install 'pydmobilenet[heic]'"
HINT = f"HEIC pictures are not read: {COMMAND}"
STUB = b"\0\0\0\x18ftypheic" + bytes(40)


@pytest.fixture
def heif(monkeypatch):
    plugin = pytest.importorskip("pillow_heif.as_plugin")
    monkeypatch.setitem(images.FORMATS, "HEIC", images.HEIC)

    def encoded(image, **options):
        file = io.BytesIO()
        image.encoderinfo = {"quality": 90, **options}
        plugin._save_heif(image, file, "")  # as image.save does once the plugin is registered
        return file.getvalue()

    return encoded


def pixels(image):
    return np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)


PHOTO = Image.effect_mandelbrot((200, 120), (-2, -1, 1, 1), 50).convert("RGB")


def test_read_heic_in_full(heif):
    picture = decode(heif(PHOTO))
    assert abs(picture.pixels - pixels(PHOTO)).mean() < 4
    assert (picture.size, picture.transparent) == ((200, 120), False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_heic_upright_once(orientation, heif):
    corner = Image.new("RGB", (120, 80))
    corner.paste("white", (0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    corner.save(file, "PNG", exif=exif)
    expected = decode(file.getvalue())
    picture = decode(heif(corner, exif=exif.tobytes()))
    assert picture.size == expected.size
    assert abs(picture.pixels.astype(int) - expected.pixels).mean() < 4


def test_put_transparent_heic_on_white(heif):
    picture = decode(heif(Image.new("RGBA", (64, 64), (0, 0, 0, 0))))
    assert picture.transparent
    assert (picture.pixels > 250).all()


def test_refuse_damaged_heic(heif, monkeypatch):
    content = heif(PHOTO)
    refused(content[: len(content) // 2], "it cannot be read as an image")
    refused(STUB, "it cannot be read as an image")
    monkeypatch.setattr(images, "MAX_PIXELS", 9999)
    refused(content, "it has 0 megapixels")


def test_a_folder_with_heic(heif, tmp_path, recwarn):
    make_classes(tmp_path, "ab", {".": 3})
    (tmp_path / "a" / "IMG_1.HEIC").write_bytes(heif(PHOTO))
    assert len(get_dataset(tmp_path, "all")) == 7
    assert not recwarn.list


def test_pillow_reads_heic_elsewhere_no_more_than_before():
    pytest.importorskip("pillow_heif")
    code = "from pydmobilenet.data import images; from PIL import Image; Image.init(); print('HEIF' in Image.OPEN)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout == "False\n", answer.stderr


def test_without_the_library_a_folder_with_heic_says_so(tmp_path, monkeypatch, capsys):
    make_classes(tmp_path / "photos", "ab", {".": 3})
    for name in ("a/1.heic", "a/2.HEIF", "b/3.heic"):
        (tmp_path / "photos" / name).write_bytes(STUB)
    with pytest.warns(UserWarning, match=r"photos: 3 HEIC pictures are not read: pip install 'pydmobilenet\[heic\]'$"):
        found = get_dataset(tmp_path / "photos", "all")
    assert "skipped: 2 .heic, 1 .heif" in found.note
    call = commander(monkeypatch, capsys)
    network = ["--model", "pyd-add-29-0.25", "--dataset", "digits"]
    code, _, err = call("predict", tmp_path / "photos", *network)
    assert (code, err.splitlines()[:2]) == (0, ["skipped: 2 .heic, 1 .heif", f"3 {HINT}"])
    code, _, err = call("predict", tmp_path / "photos" / "a" / "1.heic", *network)
    assert (code, err) == (2, f"pydmobilenet: error: {tmp_path}/photos/a/1.heic is HEIC: {COMMAND}\n")


def test_without_the_library_a_folder_of_heic_alone_says_so(tmp_path):
    (tmp_path / "1.heic").write_bytes(STUB)
    skipped = folder.find(tmp_path)[1]
    assert folder.no_images(tmp_path, skipped).endswith(f"skipped: 1 .heic); 1 {HINT}")
    with pytest.raises(BadFileError, match="is HEIC"):
        decode(STUB)
