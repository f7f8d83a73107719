"""How a picture becomes a square of pixels: here, and nowhere else.

The formats are those that Pillow decodes by itself, told by what a file holds and not by its name: others start
programs (EPS), or are large libraries that few pictures need. Of an animation it is the first frame.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union, cast

import numpy as np

from ..errors import BadFileError
from ..machine import available_processors
from .dataset import content_hash

if TYPE_CHECKING:
    from PIL import Image as Pillow

SIDE = 32  # pixels, unless another size is asked for
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# What a picture may cost: decoded, the largest takes less than 1 GB, and uncompressed in 16 bits it is still read.
MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535
MAX_BYTES = 8 * MAX_PIXELS
MAX_SCANS = 100  # of a JPEG, each of which visits all pixels in as little as 10 bytes; encoders make about 10
THREADS = 4  # at most, which decode at once: each may take as much memory as the largest picture does

PNG = b"\x89PNG\r\n\x1a\n"  # its first bytes; then come chunks: 4 bytes of length, 4 of kind, the content, 4 to check
COMMENTS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords of comments that Pillow looks for it in

# Drawings and logos are cut out to be put on a page, which is white; on black their ink would vanish.
BACKGROUND = "white"

_GIVEN = threading.Lock()  # held while a caller's image is decoded, which may be given several times
_LIBTIFF = threading.Lock()  # held while standard error leads nowhere, which is so for the whole process

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it says of damaged files would go to standard error


class Picture(NamedTuple):
    """A picture's pixels (3, side, side) in uint8, the `size` it had (width, height), and if it was `transparent`; of a
    file that was `read`, its `content_hash`.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    transparent: bool
    hash: str = ""


PictureOrError = Union[Picture, BadFileError]
Content = Union[bytes, np.ndarray, "Pillow.Image"]


def read(path: Path, resize: bool = True, side: int = SIDE) -> Picture:
    """The picture of a file, with its hash; raises BadFileError as `decode` does."""
    data = content(path)
    return decode(data, str(path), resize, side)._replace(hash=content_hash(data))


def content(path: Path) -> bytes:
    """What a file holds, up to a byte more than is allowed; raises BadFileError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None


def decode(content: bytes, name: str, resize: bool = True, side: int = SIDE) -> Picture:
    """The picture that a file's content holds: turned upright, put on white, resized by area-weighted bilinear.

    Raises BadFileError, which calls it `name`, where it is damaged, none of `FORMATS` or beyond the limits above; where
    it is not certain which of its values is white; and, without `resize`, where it has another size.
    """
    with _pixels_alone():
        return _decode(content, name, resize, side)


def decode_all(
    files: Sequence[Any], names: Sequence[str], content: Callable[[Any], Content], side: int = SIDE
) -> list[PictureOrError]:
    """The picture of each file, or the error that `decode` raises for it, by several threads.

    `content` gives what a file holds, pixels (H, W, 3) in uint8, or an image of Pillow's.
    """

    def attempt(file: Any, name: str) -> PictureOrError:
        try:
            return _decode(content(file), name, True, side)
        except BadFileError as error:
            return error

    # Pillow's settings and Python's filters of warnings are the whole process's: they are set once, not by each thread.
    with _pixels_alone(), ThreadPoolExecutor(min(THREADS, available_processors())) as pool:
        return list(pool.map(attempt, files, names))


def _decode(content: Content, name: str, resize: bool, side: int) -> Picture:
    from PIL import Image

    try:
        ours = not isinstance(content, Image.Image)
        opened = _open(content) if isinstance(content, bytes) else content
        image = Image.fromarray(opened) if isinstance(opened, np.ndarray) else opened
        image, transparent = _on_background(_upright(image, None if resize else side, ours))
        size = image.size
        if size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)  # Pillow's takes in all pixels
        return Picture(np.asarray(image).transpose(2, 0, 1), size, transparent)
    except BadFileError as error:
        raise BadFileError(f"{name} {error}") from None
    except Exception as error:  # of Pillow, which raises what it pleases on damaged files, KeyError and MemoryError too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(f"{name} cannot be read as an image: {reason[:200]}") from None


def _open(content: bytes) -> Pillow.Image:
    """The image that a file's content holds, not yet decoded."""
    from PIL import Image, UnidentifiedImageError

    if len(content) > MAX_BYTES:
        raise BadFileError(f"is larger than {MAX_BYTES:,} bytes, which is the most allowed")
    try:
        image = Image.open(io.BytesIO(_without_comments(content)), formats=[name.upper() for name in FORMATS])
    except UnidentifiedImageError:
        raise BadFileError(f"cannot be read as an image (allowed: {', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadFileError(f"has more than {MAX_PIXELS:,} pixels, which are the most allowed") from None
    # By mere chance, what stands beside the pixels (a film, a thumbnail) has a scan's two bytes once in 65,536.
    if content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") > MAX_SCANS + len(content) // 16_384:
        raise BadFileError(f"has more than {MAX_SCANS} scans, which are the most allowed")
    return image


def _upright(image: Pillow.Image, side: int | None, ours: bool) -> Pillow.Image:
    """A picture in RGB or RGBA, as the camera noted which way is up; with a `side`, one of that size alone. One of
    `ours` is closed.
    """
    from PIL import ImageOps

    tags = getattr(image, "tag_v2", {})  # which a TIFF alone has
    for width, height in (image.size, (tags.get(322, 1), tags.get(323, 1))):  # of a TIFF's tiles, each decoded whole
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            allowed = f"{MAX_PIXELS:,}, and {MAX_SIDE:,} a side"
            raise BadFileError(f"has {width:,}x{height:,} pixels (allowed: up to {allowed})")
    if not all(image.size):
        raise BadFileError("has no pixels")
    if side and image.size != (side, side):
        raise BadFileError(f"has {image.width}x{image.height} pixels (allowed: {side}x{side})")
    negative = bool(tags) and tags.get(262, 0) == 0  # PhotometricInterpretation: 0 is white
    with nullcontext() if ours else _GIVEN, _no_standard_error() if tags else nullcontext():
        raw_mode = _raw_mode(image)  # which Pillow forgets as it decodes
        upright = ImageOps.exif_transpose(image)
    if ours:
        image.close()  # frees its pixels
    return _colours(upright, raw_mode, negative)


def _without_comments(content: bytes) -> bytes:
    """Drop a PNG's colour profile and comments, which Pillow unpacks and refuses where they are large.

    Those that may tell which way is up stay, and Pillow's limits with them.
    """
    if not content.startswith(PNG):
        return content
    kept, start = [PNG], len(PNG)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind, keyword = content[start + 4 : start + 8], content[start + 8 : start + 87].partition(b"\0")[0]
        if kind != b"iCCP" and (kind not in COMMENTS or keyword in ORIENTATION):
            kept.append(content[start:end])
        start = end
    return b"".join([*kept, content[start:]])


@contextmanager
def _pixels_alone() -> Iterator[None]:
    """A context in which Pillow refuses a file that ends too early: others, GluonCV too, have it fill up with grey. Of
    what is wrong beside the pixels (resolution, comments) it does not warn.
    """
    from PIL import ImageFile

    earlier, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = earlier


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """A context that libtiff prints nothing in: what is wrong with a file Pillow raises anyway.

    One thread at a time is in it.
    """
    with _LIBTIFF:
        try:
            own = os.dup(2)
        except OSError:  # there is none
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
            os.close(nowhere)


def _raw_mode(image: Pillow.Image) -> str:
    """How a file has its pixels, in Pillow's words, as RGB;16B; empty where that does not matter or is not known."""
    tile = getattr(image, "tile", None)  # which an image that is decoded has no longer
    if not tile:
        return ""
    arguments = tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _colours(image: Pillow.Image, raw_mode: str, negative: bool) -> Pillow.Image:
    """An image in RGB or, where one may see through it, in RGBA; Pillow clips grey beyond 8 bits, and misses keys."""
    from PIL import Image

    deep = ";16" in raw_mode and not raw_mode.startswith("BGR")  # which is 16 bits a pixel, not a colour
    palette = image.mode == "P"
    see_through = image.mode in ("LA", "PA", "RGBA", "RGBa", "La")
    see_through |= palette and ("transparency" in image.info or getattr(image.palette, "mode", "") == "RGBA")
    key = None if palette else image.info.pop("transparency", None)  # the one colour that is not there
    clear = None
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        clear = None if key is None else values == key
        image = Image.fromarray(_eight_bits(values, _whites(image, raw_mode), negative))
    elif deep and max(high for _, high in _extrema(image)) < 16:  # Pillow has kept the upper 8 bits
        raise BadFileError("has colours of 16 bits that are almost black, or use fewer bits: save it with 8 bits")
    elif deep and key is not None:
        raise BadFileError("has a transparent colour of 16 bits, of which 8 are read: save it with alpha instead")
    elif key is not None and image.mode in ("1", "L"):
        if image.mode == "L" and not raw_mode and 0 < key < 16:
            raise BadFileError("is decoded already, which hides its transparent grey: pass its file")
        scale = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # pixels have been scaled to 8 bits, their key has not
        image, key = image.convert("L"), 255 * bool(key) if image.mode == "1" else key * scale
        clear = np.asarray(image) == key
    elif key is not None and image.mode == "RGB":
        clear = (np.asarray(image) == key).all(axis=2)
    if image.mode == "La":
        image = image.convert("LA")  # from which alone it goes on
    image = image.convert("RGBA" if see_through else "RGB")
    if clear is not None:
        image.putalpha(Image.fromarray(~clear * np.uint8(255)))
    return image


def _whites(image: Pillow.Image, raw_mode: str) -> Sequence[int]:
    """The values that may stand for white in grey of more than 8 bits, from the lowest on."""
    if image.mode == "F":
        return 1, 255, 65535
    if raw_mode == "I;12":
        return (4095,)
    if image.mode.startswith("I;16") or raw_mode == "I;16B":  # of PNGs, which Pillow before 11 reads in 32 bits
        return (65535,)
    return (255,) if "16" in raw_mode else (255, 65535)  # with a sign, 16 bits do not reach 65535


def _eight_bits(values: np.ndarray, whites: Sequence[int], negative: bool) -> np.ndarray:
    """Grey values in uint8.

    White is the lowest of `whites` that is not exceeded, and has to be more or less approached: a wrong guess is an
    image that is clipped, or almost black.
    """
    low, high = values.min(), values.max()
    white = next((white for white in whites if high <= white), 0)
    if not (low >= 0 and white) or 0 < high < white / 16:
        raise BadFileError(
            f"has grey values from {low:g} to {high:g}, which do not tell how bright white is: save it with 8 bits"
        )
    if values.dtype.kind == "f":
        scaled = values * np.float32(255 / white)
        grey = np.rint(scaled, out=scaled).astype(np.uint8)
    else:
        grey = (values // ((white + 1) // 256)).astype(np.uint8)  # the upper byte, which Pillow takes of 16-bit colours
    return 255 - grey if negative else grey


def _extrema(image: Pillow.Image) -> tuple[tuple[int, int], ...]:
    """The lowest and the highest value of each band of an image in several."""
    return cast("tuple[tuple[int, int], ...]", image.getextrema())  # Pillow's type is that of a single band as well


def _on_background(image: Pillow.Image) -> tuple[Pillow.Image, bool]:
    """An image in RGB on `BACKGROUND`, and whether one could see through it."""
    from PIL import Image

    if image.mode == "RGB":
        return image, False
    *_, (least, most) = _extrema(image)  # of the last band, which is alpha
    if least == 255:
        return image.convert("RGB"), False
    flat = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    if least < most and all(low == high for low, high in _extrema(flat)):
        raise BadFileError(f"is drawn in {BACKGROUND} on a transparent ground, and vanishes: give it a background")
    return flat, True
