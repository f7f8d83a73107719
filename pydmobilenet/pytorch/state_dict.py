"""Read what ``torch.save(net.state_dict(), FILE)`` has written."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.formats import check_finite
from ..errors import BadFileError, UnusableError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # the keys under which checkpoints keep it
PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and its kin, and of torch.compile
SAFE = (2, 6)  # before, weights_only ran code that a forged file holds (CVE-2025-32434)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a state dict in float32, without wrappers' prefixes and ``num_batches_tracked``.

    Raises BadFileError for a file that is damaged, holds objects besides tensors, or a number that is not finite.
    """
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version < SAFE:
        raise UnusableError(f"PyTorch {torch.__version__} does not read {path} safely (allowed: 2.6 and newer)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        advice = "torch.save(net.state_dict(), FILE) writes what can be read"
        raise BadFileError(f"{path} holds more than tensors, or is damaged: {advice}") from None
    except Exception as error:  # torch.load raises what it pleases on damaged files
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadFileError(f"{path} is no file of PyTorch's, or a damaged one: {why[:200]}") from None
    arrays = {}
    for key, tensor in _state_dict(content, path).items():
        name = PREFIXES.sub("", str(key))
        if not isinstance(tensor, torch.Tensor):
            raise BadFileError(f"{path} has a {type(tensor).__name__} at {name[:100]!r} (allowed: tensors)")
        if name in arrays:
            raise BadFileError(f"{path} has {name[:100]!r} twice")
        if name.rpartition(".")[2] != "num_batches_tracked":
            arrays[name] = _array(tensor, f"{path}, {name[:100]!r}")
    check_finite(path, arrays)
    return arrays


def _state_dict(content: object, path: Path) -> Mapping:
    if isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        if inner:
            return inner
    raise BadFileError(f"{path} holds no state dict; torch.save(net.state_dict(), FILE) writes one")


def _array(tensor: torch.Tensor, where: str) -> np.ndarray:
    try:
        return tensor.detach().to(torch.float32).numpy()
    except (RuntimeError, TypeError) as error:  # a sparse one, one without data, complex numbers
        why = " ".join(str(error).split())[:100]
        raise BadFileError(f"{where}: no dense tensor of real numbers ({why})") from None
