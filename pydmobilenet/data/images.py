"""Decode pictures to square pixels: the only place that says how.

Only formats decoded by Pillow itself, and HEIC by pillow-heif, are opened, recognised by content, not by name; of an
animation, the first frame. A JPEG of at least `DRAFT_FROM` times the side is decoded at a half, a quarter or an eighth
of its size by the JPEG library itself, to at least `DRAFT_TO` times the side, unless a run was begun with ``full``
decoding.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, Union

import numpy as np

from ..errors import BadFileError
from ..machine import available_processors
from .dataset import DRAFT

if TYPE_CHECKING:
    from PIL import Image as Pillow

SIDE = 32  # pixels, by default
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
HEIC = (".heic", ".heif", ".hif")  # of iPhones
HEIC_BRANDS = b"heic heix hevc hevx heim heis hevm hevs mif1 msf1".split()  # ISO/IEC 23008-12
HEIC_COMMAND = "pip install 'pydmobilenet[heic]'"
if util.find_spec("pillow_heif"):
    FORMATS["HEIC"] = HEIC
SKIP_HINT = "--skip-bad (in Python, skip_bad=True) goes on without it"
VERSION = 1  # of this module's way to pixels: one more for any change of these
DRAFT_FROM, DRAFT_TO = 4, 2
MAX_PIXELS = 178_956_970  # to decode: Pillow's own limit, which it checks before a draft
MAX_JPEG_PIXELS = 400_000_000  # before the draft. Phones make 200 million.
THREADS = 4  # at most: each may take as much memory as the largest picture
BACKGROUND = "white"  # behind transparent drawings and logos: black ink would vanish on black

_LOCK = threading.Lock()  # a caller's image may be given several times, and is decoded once

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow's warnings of damaged files go to stderr


class Picture(NamedTuple):
    """Pixels (3, side, side) in uint8, the original size (width, height), and the `content_hash` of a file."""

    pixels: np.ndarray
    size: tuple[int, int]
    transparent: bool
    hash: str = ""


Content = Union[bytes, np.ndarray, "Pillow.Image"]


T = TypeVar("T")


def suffixes() -> tuple[str, ...]:
    """List the suffixes of all formats."""
    return tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def version() -> str:
    """Name the way of decoding and its libraries: another version may give other pixels."""
    import PIL

    libraries = [f"way {VERSION}", f"pillow {PIL.__version__}"]
    if "HEIC" in FORMATS:
        import pillow_heif

        libraries.append(f"pillow-heif {pillow_heif.__version__}")
    return ", ".join(libraries)


def content(path: Path) -> bytes:
    """Read a file. Raises BadFileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None


def read_all(
    items: Sequence[T], read: Callable[[T], Picture], report: Callable[[int], object] = lambda number: None
) -> list[Picture | BadFileError]:
    """Read pictures by several threads; return each one's picture or error, in order.

    `read` calls `to_picture`. `report` is called with 1 after each. Threads are faster than processes, as Pillow
    releases the interpreter: two read 96 photos of 12 megapixels a second, two processes 91, one thread 51.
    """

    def attempt(item: T) -> Picture | BadFileError:
        try:
            return read(item)
        except BadFileError as error:
            return error

    results = []
    # These settings hold for the whole process, so they are set once, not by each thread.
    with _settings(), ThreadPoolExecutor(min(THREADS, available_processors())) as pool:
        for result in pool.map(attempt, items):
            results.append(result)
            report(1)
    return results


def to_picture(content: Content, name: str, resize: bool, side: int, decoding: str) -> Picture:
    """Decode the content of a file, within `read_all`: upright, on white, resized by area-weighted bilinear
    interpolation.

    The content may also be pixels (H, W, 3) in uint8, or an image of Pillow's, which is decoded in full. Raises
    BadFileError, naming the file as `name`; without `resize` also for another size than `side`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(content, bytes):
            image, full_size = _open(content, side, decoding)
        else:
            image, full_size = Image.fromarray(content) if isinstance(content, np.ndarray) else content, None
        if not all(image.size):
            raise BadFileError("has no pixels")
        if not resize and image.size != (side, side):
            raise BadFileError(f"has {image.width}x{image.height} pixels (allowed: {side}x{side})")
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        negative = bool(tags) and tags.get(262, 0) == 0  # PhotometricInterpretation: 0 is white
        with _LOCK if image is content else nullcontext():
            raw_mode = _raw_mode(image)
            if full_size and image.getexif().get(0x0112) in (5, 6, 7, 8):  # Orientation: it lies on its side
                full_size = full_size[::-1]
            image = ImageOps.exif_transpose(image)
        image, transparent = _on_background(_colours(image, raw_mode, negative))
        size = full_size or image.size
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)  # over all pixels
        return Picture(np.asarray(image).transpose(2, 0, 1), size, transparent)
    except BadFileError as error:
        raise BadFileError(f"{name} {error}") from None
    except UnidentifiedImageError:
        raise BadFileError(f"{name} cannot be read as an image (allowed: {', '.join(FORMATS)})") from None
    except Exception as error:  # on damaged files, Pillow raises any kind, KeyError and MemoryError too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(f"{name} cannot be read as an image: {reason[:200]}") from None


def _open(content: bytes, side: int, decoding: str) -> tuple[Pillow.Image, tuple[int, int] | None]:
    """Open the content of a file, a large JPEG as a draft; return the full size of a draft too, else None.

    `Image.open` would refuse a JPEG by its full size, and read HEIC only if Pillow did so everywhere.
    """
    from PIL import Image, JpegImagePlugin

    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS:
        return _open_heic(content), None
    if decoding == DRAFT and content.startswith(b"\xff\xd8\xff"):
        with suppress(SyntaxError):  # a damaged header
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
            full_size = image.size
            is_draft = min(full_size) >= DRAFT_FROM * side
            if is_draft:
                image.draft(image.mode, (DRAFT_TO * side, DRAFT_TO * side))
            is_progressive = "progressive" in image.info  # then a draft needs memory for all of it
            _check_size(full_size, MAX_PIXELS if is_progressive else MAX_JPEG_PIXELS)
            _check_size(image.size, MAX_PIXELS)
            return image, full_size if is_draft else None
    return Image.open(io.BytesIO(content), formats=[name.upper() for name in FORMATS if name != "HEIC"]), None


def _open_heic(content: bytes) -> Pillow.Image:
    if "HEIC" not in FORMATS:
        raise BadFileError(f"is HEIC: {HEIC_COMMAND}")
    import pillow_heif

    image = pillow_heif.HeifImageFile(io.BytesIO(content))  # upright: it removes the orientation
    _check_size(image.size, MAX_PIXELS)
    return image


def _check_size(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise BadFileError(f"has {size[0] * size[1] / 1e6:,.0f} megapixels (allowed: {most / 1e6:.0f})")


@contextmanager
def _settings() -> Iterator[None]:
    """Reject truncated files, as other libraries let Pillow fill them with grey; silence metadata warnings."""
    from PIL import ImageFile

    earlier, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = earlier


def _raw_mode(image: Pillow.Image) -> str:
    """Return Pillow's name for the pixels of a file, as RGB;16B; empty once the image is decoded."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    arguments = tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _colours(image: Pillow.Image, raw_mode: str, negative: bool) -> Pillow.Image:
    """Return an image in RGB, or in RGBA if it is transparent; scale 16-bit grey, which Pillow clips.

    Raises BadFileError if it is uncertain which value is white, or transparent.
    """
    from PIL import Image

    unknown = raw_mode == "1" or ";" in raw_mode or (not raw_mode and image.mode != "RGB")
    if image.mode != "P" and "transparency" in image.info and unknown:
        # Pillow forgets the depth of this colour as it decodes.
        raise BadFileError("has a transparent colour of unknown depth: save it with alpha instead")
    grey = image.mode.startswith(("I", "F"))
    # Before Pillow 11, grey of 16 bits in a PNG has mode I.
    if grey and (negative or not (image.mode.startswith("I;16") or raw_mode == "I;16B")):
        raise BadFileError("has grey of unknown depth: save it with 8 bits")
    if grey or (";16" in raw_mode and not raw_mode.startswith("BGR")):  # BGR;16 is 16 bits a pixel
        values = np.asarray(image)
        dark = 0 < values.max() < 4096 if grey else values.max() < 16  # of colours, Pillow keeps 8 bits
        if dark:
            raise BadFileError("has 16 bits but is almost black, or uses fewer bits: save it with 8 bits")
        image = Image.fromarray((values // 256).astype(np.uint8)) if grey else image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _on_background(image: Pillow.Image) -> tuple[Pillow.Image, bool]:
    """Return an image in RGB on `BACKGROUND`, and whether it was transparent."""
    from PIL import Image

    if image.mode == "RGB":
        return image, False
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() == 255:
        return image.convert("RGB"), False
    flat = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    if alpha.min() < alpha.max() and flat.getcolors(1):
        raise BadFileError(f"is drawn in {BACKGROUND} on transparency and would vanish: give it a background")
    return flat, True
