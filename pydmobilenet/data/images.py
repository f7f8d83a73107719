"""How a picture becomes a square of pixels: here, and nowhere else.

The formats are those that Pillow decodes by itself, told by what a file holds and not by its name: others start
programs (EPS), or are large libraries that few pictures need. Of an animation it is the first frame.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

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
THREADS = 4  # at most, which decode at once: each may take as much memory as the largest picture does
BACKGROUND = "white"  # drawings and logos are cut out to be put on a page; on black their ink would vanish
MAX_TEXT = 1 << 26  # bytes of a PNG's comment or colour profile: a workflow in it may exceed Pillow's 1 MB

_GIVEN = threading.Lock()  # held while a caller's image is decoded, which may be given several times

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
    """Return the picture of a file, with its hash; raises BadFileError as `decode` does."""
    data = content(path)
    return decode(data, str(path), resize, side)._replace(hash=content_hash(data))


def content(path: Path) -> bytes:
    """Return what a file holds; raises BadFileError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None


def decode(content: bytes, name: str, resize: bool = True, side: int = SIDE) -> Picture:
    """Return the picture that a file's content holds: turned upright, put on white, resized by area-weighted bilinear.

    Raises BadFileError, which calls it `name`, where it is damaged or none of `FORMATS`; where it is not certain which
    of its values is white; and, without `resize`, where it has another size.
    """
    with _settings():
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
    with _settings(), ThreadPoolExecutor(min(THREADS, available_processors())) as pool:
        return list(pool.map(attempt, files, names))


def _decode(content: Content, name: str, resize: bool, side: int) -> Picture:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(content, bytes):
            image: Pillow.Image = Image.open(io.BytesIO(content), formats=[each.upper() for each in FORMATS])
        else:
            image = Image.fromarray(content) if isinstance(content, np.ndarray) else content
        if not all(image.size):
            raise BadFileError("has no pixels")
        if not resize and image.size != (side, side):
            raise BadFileError(f"has {image.width}x{image.height} pixels (allowed: {side}x{side})")
        tags = getattr(image, "tag_v2", {})  # which a TIFF alone has
        negative = bool(tags) and tags.get(262, 0) == 0  # PhotometricInterpretation: 0 is white
        with _GIVEN if image is content else nullcontext():
            raw_mode = _raw_mode(image)
            image = ImageOps.exif_transpose(image)
        image, transparent = _on_background(_colours(image, raw_mode, negative))
        size = image.size
        if size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)  # Pillow's takes in all pixels
        return Picture(np.asarray(image).transpose(2, 0, 1), size, transparent)
    except BadFileError as error:
        raise BadFileError(f"{name} {error}") from None
    except UnidentifiedImageError:
        raise BadFileError(f"{name} cannot be read as an image (allowed: {', '.join(FORMATS)})") from None
    except Exception as error:  # of Pillow, which raises what it pleases on damaged files, KeyError and MemoryError too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(f"{name} cannot be read as an image: {reason[:200]}") from None


@contextmanager
def _settings() -> Iterator[None]:
    """A context in which Pillow refuses a file that ends too early: others, GluonCV too, have it fill up with grey. Of
    what is wrong beside the pixels (resolution, comments) it does not warn.
    """
    from PIL import ImageFile, PngImagePlugin

    owners = (ImageFile, "LOAD_TRUNCATED_IMAGES", False), (PngImagePlugin, "MAX_TEXT_CHUNK", MAX_TEXT)
    earlier = [getattr(owner, name) for owner, name, _ in owners]
    try:
        for owner, name, value in owners:
            setattr(owner, name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for (owner, name, _), value in zip(owners, earlier):
            setattr(owner, name, value)


def _raw_mode(image: Pillow.Image) -> str:
    """Return how a file has its pixels, in Pillow's words, as RGB;16B, which Pillow forgets as it decodes them; empty
    where that does not matter or is not known.
    """
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    arguments = tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _colours(image: Pillow.Image, raw_mode: str, negative: bool) -> Pillow.Image:
    """Return an image in RGB or, where one may see through it, in RGBA. Pillow clips grey beyond 8 bits, and misses
    the keys of some: the one colour that is not there.
    """
    from PIL import Image

    key = None if image.mode == "P" else image.info.pop("transparency", None)
    deep = ";16" in raw_mode and not raw_mode.startswith("BGR")  # which is 16 bits a pixel, not a colour
    values = np.asarray(image)
    if image.mode.startswith(("I", "F")):
        # Before Pillow 11, grey of 16 bits in a PNG has mode I.
        if negative or not (image.mode.startswith("I;16") or raw_mode == "I;16B"):
            raise BadFileError("has grey of which it is not certain what is white: save it with 8 bits")
        if 0 < values.max() < 4096:
            raise BadFileError("has grey of 16 bits that is almost black, or uses fewer bits: save it with 8 bits")
        image = Image.fromarray((values // 256).astype(np.uint8))
    elif deep and values.max() < 16:  # Pillow has kept the upper 8 bits
        raise BadFileError("has colours of 16 bits that are almost black, or use fewer bits: save it with 8 bits")
    elif deep and key is not None:
        raise BadFileError("has a transparent colour of 16 bits, of which 8 are read: save it with alpha instead")
    elif image.mode == "1" and key is not None:
        key = bool(key)
    elif image.mode == "L" and key is not None:
        if not raw_mode and 0 < key < 16:
            raise BadFileError("is decoded already, which hides its transparent grey: pass its file")
        key *= {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # pixels have been scaled to 8 bits, their key has not
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if key is not None:
        clear = values == key
        image.putalpha(Image.fromarray(~(clear.all(axis=2) if clear.ndim == 3 else clear) * np.uint8(255)))
    return image


def _on_background(image: Pillow.Image) -> tuple[Pillow.Image, bool]:
    """Return an image in RGB on `BACKGROUND`, and whether one could see through it."""
    from PIL import Image

    if image.mode == "RGB":
        return image, False
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() == 255:
        return image.convert("RGB"), False
    flat = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    if alpha.min() < alpha.max() and flat.getcolors(1):
        raise BadFileError(f"is drawn in {BACKGROUND} on a transparent ground, and vanishes: give it a background")
    return flat, True
