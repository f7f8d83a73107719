"""A reader for pickled batches that admits arrays, strings, numbers, lists and dicts, and nothing else.

A pickle is a program: the ordinary reader runs whatever it names. The official CIFAR and ImageNet32 files need only an
array's names, which are below with the forms that newer versions of Python and NumPy write.
"""

from __future__ import annotations

import io
import pickle

import numpy as np

from ..errors import BadFileError


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old pickle protocols: ``_codecs.encode(text, 'latin1')``."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _empty_array(subtype: type, shape: tuple, dtype: object) -> np.ndarray:
    """The start of an array; the pickle's state then gives it its shape. Never as large as the file likes."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _array(content: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """An array from its bytes, as pickle protocol 5 has it."""
    return np.frombuffer(content, dtype).reshape(shape, order=order)


ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # as NumPy 2 writes it
    ("numpy.core.numeric", "_frombuffer"): _array,
    ("numpy._core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no data file needs")
        return ADMITTED[module, name]


def loads(content: bytes, path: object) -> dict:
    """The dict that a pickled batch holds, its keys as strings. `path` is named in errors.

    Raises BadFileError for anything else, before anything that the file names is run.
    """
    try:
        # The official files are Python 2's: latin1 keeps their bytes, and their arrays need it.
        batch = _Reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise BadFileError(f"{path} is no pickled batch of images: {error}") from None
    if not isinstance(batch, dict):
        raise BadFileError(f"{path} is no pickled batch of images: it holds a {type(batch).__name__}, not a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
