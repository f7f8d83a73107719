"""Files of weights: find, download, verify, read and write, under the names of the authors, Gluon or PyTorch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from .. import fetching, files
from ..catalog import PublishedFile
from ..data import decoded
from ..errors import BadFileError, InvalidValueError, MissingFileError, UnusableError
from ..files import PRETRAINED
from ..folding import lower
from ..network import (
    CIFAR,
    FAMILIES,
    IMAGENET32,
    Architecture,
    BatchNorm,
    Convolution,
    Dense,
    Network,
    describe,
)
from . import formats

Head = Literal["required", "optional", "fresh"]
"""Whether a file's dense layer must fit the network, is loaded if it fits, or is never loaded."""

# At the commit of the hashes. A mirror needs the same paths.
AUTHORS_REPOSITORY = (
    "https://raw.githubusercontent.com/thanhhvnqb/pydmobilenet_mxnet/ffb6cfcdb5028b1470f865bd7b3011e16c789936"
)
MIRROR_VARIABLE = "PYDMOBILENET_WEIGHTS_URL"

# The authors' names of parts, and ours. The first component differs from file to file and is dropped; `stg1/blk0/`
# becomes `stages.1.0.`.
OUTER_PARTS = {
    "conv0/batchnorm0": "stem.norm",
    "conv0/conv0": "stem.conv",
    "classifier/batchnorm0": "head.norm",
    "classifier/conv0": "head.features",
    "classifier/dense0": "head.dense",
}
BLOCK_PARTS = {
    # PydMobileNet
    "btl_in/batchnorm0": "norm1",
    "btl_in/conv0": "reduce",
    "btl_in/batchnorm1": "norm2",
    "conv3/conv0": "spatial.conv3",
    "conv5/conv0": "spatial.conv5",
    "conv7/conv0": "spatial.conv7",
    "btl_out/batchnorm0": "norm3",
    "btl_out/conv0": "expand",
    "btl_out/batchnorm1": "norm4",
    # ResNet and MobileNet
    "body/batchnorm0": "norm1",
    "body/conv0": "reduce",
    "body/batchnorm1": "norm2",
    "body/conv1": "spatial.conv3",
    "body/batchnorm2": "norm3",
    "body/conv2": "expand",
    "body/batchnorm3": "norm4",
    # all of them, where the stride is 2
    "conv0": "shortcut.0",
    "batchnorm0": "shortcut.1",
}
GLUON_KINDS = {Convolution: "conv", BatchNorm: "batchnorm", Dense: "dense"}


def directories(root: Path | None = None) -> list[Path]:
    """List the directories of the authors' files: `root`, ``$PYDMOBILENET_HOME``, the package, MXNet's home."""
    return fetching.search_path("models", root, PRETRAINED if os.path.isdir(PRETRAINED) else None)


def find(file: PublishedFile, root: Path | None = None) -> Path | None:
    """Find and verify one of the authors' files, flat or as in their repository, original or converted.

    Raises BadFileError for another content.
    """
    forms = [Path(form) for form in (file.name, file.path.removeprefix("models/"), file.path)]
    forms += [form.with_suffix(formats.SAFETENSORS) for form in forms]
    candidates = [directory / form for directory in directories(root) for form in forms]
    path = next(filter(os.path.isfile, candidates), None)
    if path is None or path.suffix != formats.SAFETENSORS:
        return path and fetching.verify(path, file.digest, file.bytes)
    source = formats.read_metadata(path).get("source_sha256")
    if not source or source != file.sha256:
        raise BadFileError(
            f"{path} was not converted from the published file: its source_sha256 is {str(source)[:100]}, not "
            f"{file.sha256 or 'known'}; move it away to go on"
        )
    return path


def obtain(file: PublishedFile, root: Path | None = None) -> Path:
    """Find one of the authors' files, or download it to `root`, ``$PYDMOBILENET_HOME`` or MXNet's home; verify it.

    Raises MissingFileError with the file to put there by hand; and BadFileError.
    """
    if path := find(file, root):
        return path
    base = (os.environ.get(MIRROR_VARIABLE) or AUTHORS_REPOSITORY).rstrip("/")
    target = fetching.search_path("models", root)[0] / file.name
    source = fetching.Source(f"{base}/{file.path}", file.digest, file.bytes or fetching.LARGEST)
    try:
        with fetching.locked(target.parent):
            return find(file, root) or fetching.fetch([source], target)  # another process may have been faster
    except MissingFileError as error:
        raise MissingFileError(
            f"{file.name} is not in {', '.join(map(str, directories(root)))}, and could not be downloaded ({error}); "
            f"to go on without a network, put it into {target.parent}"
        ) from None


def read(path: Path, network: Network | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a file under our structural names. Names of Gluon's scopes need the network.

    Raises MissingFileError; BadFileError for a damaged file and foreign names; UnusableError for a file of PyTorch's
    without PyTorch.
    """
    arrays = _arrays(path)
    scoped = {} if network is None else _scoped_names(arrays, network)
    translated = {}
    for name, checkpoint_name in checkpoint_names(arrays).items():
        ours = structural_name(checkpoint_name) or scoped.get(checkpoint_name)
        if ours is None:
            raise BadFileError(f"{path} is of another network, or of none of this project: it has {name[:100]!r}")
        if ours in translated:
            raise BadFileError(f"{path} has {ours} twice")
        translated[ours] = arrays[name]
    return translated


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    head = formats.read_head(path)
    if formats.is_safetensors(head):
        return formats.read_safetensors(path)
    if not head.startswith((b"PK\3\4", b"\x80")):  # by ``torch.save``: a zip archive or, long ago, a pickle
        return formats.read_params(path)
    try:
        from ..pytorch.network import read_state_dict
    except Exception as error:  # its shared libraries may be missing, or not fit together
        why = " ".join(str(error).split())[:200]
        raise UnusableError(f"{path} needs PyTorch ({why}): pip install 'pydmobilenet[torch]'") from None
    return read_state_dict(path)


def checkpoint_names(names: Iterable[str]) -> dict[str, str]:
    """Map names of PyTorch's state dict to those of checkpoints: gamma and beta of batch norms, without counters."""
    norms = {name.rpartition(".")[0] for name in names if name.endswith(".running_mean")}
    kinds = {"weight": "gamma", "bias": "beta"}
    parts = {name: name.rpartition(".") for name in names if not name.endswith(".num_batches_tracked")}
    return {
        name: f"{owner}.{kinds.get(kind, kind)}" if owner in norms else name for name, (owner, _, kind) in parts.items()
    }


def structural_name(name: str) -> str | None:
    """Return our name of a parameter for the authors' or our own (GluonCV's for Wide ResNets); None for others.

    >>> structural_name("arg:cifar10_resne29/stg1/blk0/body/conv1_weight")
    'stages.1.0.spatial.conv3.weight'
    """
    if re.fullmatch(r"(stem|stages|head|features|output)(\.\w+)+", name):
        return name
    kinds = "weight|bias|gamma|beta|running_mean|running_var"
    match = re.fullmatch(rf"(?:arg|aux):[^/]+/(?:stg(\d+)/blk(\d+)/)?(.+?)_({kinds})", name)
    if match is None:
        return None
    stage, block, part, kind = match.groups()
    prefix, parts = ("", OUTER_PARTS) if stage is None else (f"stages.{stage}.{block}.", BLOCK_PARTS)
    return f"{prefix}{parts[part]}.{kind}" if part in parts else None


def _scoped_names(names: Iterable[str], network: Network) -> dict[str, str]:
    """Map names of Gluon's scopes to structural names, if they fit the network.

    Gluon numbers the layers of a kind, ``conv33_weight``, in the order of their making, across all networks of a
    process. So the order identifies a layer, and the number does not.
    """
    number = re.compile(r"\d+(?=_)")
    theirs = defaultdict(list)
    for name in sorted(names, key=lambda name: [digits.zfill(20) for digits in number.findall(name)]):
        theirs[number.sub("", re.sub("^(arg|aux):", "", name))].append(name)
    for gluoncv in (False, True):
        ours = defaultdict(list)
        for layer in lower(network).layers:
            inner = "stage_" if layer.name.count(".") > 1 else ""  # of a Wide ResNet
            scope = f"cifarwideresnet_{inner}" if gluoncv else ""
            for leaf in layer.parameters:
                ours[f"{scope}{GLUON_KINDS[type(layer)]}_{leaf}"].append(f"{layer.name}.{leaf}")
        if {kind: len(alike) for kind, alike in ours.items()} == {kind: len(alike) for kind, alike in theirs.items()}:
            return {name: our for kind, alike in theirs.items() for name, our in zip(alike, ours[kind])}
    return {}


def load(path: Path, network: Network, head: Head = "required") -> dict[str, np.ndarray]:
    """Load the parameters of a file in float32, without the dense layer if `head` says so.

    Raises BadFileError unless the file has every other parameter of the network in its shape and no other.
    """
    arrays = read(path, network)
    wanted, shapes = dict(network.parameters), {name: array.shape for name, array in arrays.items()}
    dense = [f"{network.head.name}.{name}" for name in network.head.parameters]
    if head == "fresh" or (
        head == "optional" and any(shapes.get(name, wanted[name]) != wanted[name] for name in dense)
    ):
        wanted, shapes = ({name: all_[name] for name in all_ if name not in dense} for all_ in (wanted, shapes))
    if wanted != shapes:
        differing = [name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name)]
        raise BadFileError(
            f"{path} does not fit the network: {len(differing)} parameters differ, as {differing[0]}: "
            f"{shapes.get(differing[0], 'absent')} in the file, {wanted.get(differing[0], 'absent')} in the network; "
            f"the file is of {identify(arrays)}"
        )
    return {name: np.asarray(arrays[name], np.float32) for name in wanted}


def identify(arrays: Mapping[str, np.ndarray]) -> str:
    """Name every network with parameters of these shapes: ``pyd-add-29-0.25 with 10 classes``."""
    shapes = {name: array.shape for name, array in arrays.items()}
    blocks = {match[0] for name in shapes if (match := re.match(r"\w+\.\d+\.\d+\.", name))}
    names = [_fitting(family, len(blocks) // 3, shapes) for family in FAMILIES]
    return " or ".join(filter(None, names)) or "another kind of network"


def _fitting(family: str, blocks: int, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name the network of a family with so many blocks a stage and parameters of these shapes, or return ""."""
    depth = FAMILIES[family].layers_per_block * blocks + FAMILIES[family].other_layers
    for widths, form in ((CIFAR, ""), (IMAGENET32, ", in its ImageNet32 form")):
        standard = describe(Architecture(family, depth, 1), 1, widths)
        outputs = math.prod(shapes.get(f"{standard.head.name}.bias", ()))
        body = {name: shape for name, shape in standard.parameters.items() if standard.head.name not in name}
        pairs = [pair for name in body for pair in zip(body[name], shapes.get(name, ())) if pair[0] != pair[1]]
        # Channels are rounded down, so the largest number gives the best multiplier: itself or a decimal above it.
        unscaled, scaled = max(pairs, default=(1, 1))
        ratio = scaled / unscaled
        decimals = (math.ceil(ratio * 10**digits) / 10**digits for digits in range(1, 10))
        for multiplier in [ratio] if (10_000 * ratio).is_integer() else decimals:
            architecture = Architecture(family, depth, multiplier)
            if describe(architecture, outputs, widths).parameters == shapes:
                return f"{architecture.name} with {outputs} classes{form}"
    return ""


def check_target(target: Path) -> None:
    """Raise InvalidValueError for a suffix that `write` does not know, UnusableError for an existing file."""
    if target.suffix not in (formats.PARAMS, formats.SAFETENSORS):
        likely = target.with_suffix(formats.SAFETENSORS)
        allowed = f"{formats.PARAMS}, {formats.SAFETENSORS}"
        raise InvalidValueError(f"{target} ends like no parameter file; nearest: {likely.name} (allowed: {allowed})")
    paths = [target, formats.sidecar(target)] if target.suffix == formats.PARAMS else [target]
    if paths[-1].name == "run.json":
        raise InvalidValueError(f"{target} would make its directory look like a run; choose another name")
    for path in paths:
        if os.path.lexists(path):
            raise UnusableError(f"{path} exists already; choose another name, or move it away")


def write(target: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write parameters under their structural names, in the format of the target's suffix.

    For ``.params``, the metadata go into a `formats.sidecar`. Raises as `check_target`, and UnusableError.
    """
    check_target(target)
    if target.suffix == formats.SAFETENSORS:
        files.write(target, formats.dump_safetensors(arrays, metadata))
        return
    content = formats.dump_params(arrays)
    record = {**decoded(metadata), "sha256": hashlib.sha256(content).hexdigest()}
    # The sidecar first: an interruption must not leave parameters that pass for those of another task.
    files.write_together({formats.sidecar(target): json.dumps(record, indent=1) + "\n", target: content})
