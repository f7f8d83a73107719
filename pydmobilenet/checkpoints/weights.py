"""Checkpoints: find, fetch, verify, load. Reads the authors' format, and what Gluon writes of our own networks: its
structural names (``net.save_parameters``) and those of its scopes (``net.export``, ``net.collect_params().save``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from .. import fetching, files
from ..catalog import Checkpoint
from ..data import decoded
from ..errors import BadFileError, InvalidValueError, MissingFileError, UnusableError
from ..folding import lower
from ..network import Architecture, BatchNorm, Convolution, Dense, Layer, Network
from ..resources import PRETRAINED
from . import params, runs, safetensors

Head = Literal["required", "optional", "fresh"]
"""Whether a file's dense layer has to fit the network, is loaded where it fits, or is never loaded."""

# The authors' repository at the commit whose files were hashed. A mirror needs the same paths below its address.
AUTHORS_REPOSITORY = (
    "https://raw.githubusercontent.com/thanhhvnqb/pydmobilenet_mxnet/ffb6cfcdb5028b1470f865bd7b3011e16c789936"
)
MIRROR_VARIABLE = "PYDMOBILENET_WEIGHTS_URL"

# The authors' names for the parts of a network, and ours. The first component of a name, which differs from file to
# file, is dropped; `stg1/blk0/` becomes `stages.1.0.`.
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


def places(root: Path | None = None) -> Iterator[Path]:
    """The directories in which checkpoints are looked for, in the order of search.

    The path given; ``$PYDMOBILENET_HOME``; the bundled ones; MXNet's home.
    """
    yield from fetching.search_path("models", root, PRETRAINED if os.path.isdir(PRETRAINED) else None)


def find(checkpoint: Checkpoint, root: Path | None = None) -> Path | None:
    """The verified file of a checkpoint, if it is on this machine: flat in one of the `places`, or as in the authors'
    repository; the authors' own, or one converted from it. Raises BadFileError for a file of that name with other
    content.
    """
    tail = checkpoint.path.split("/", 1)[1]  # without `models/`
    forms = [Path(form) for form in (checkpoint.filename, tail, checkpoint.path)]
    forms += [form.with_suffix(safetensors.SUFFIX) for form in forms]
    found = fetching.first_existing(place / form for place in places(root) for form in forms)
    if found and found.suffix == safetensors.SUFFIX:
        return _converted(found, checkpoint)
    return found and fetching.verify(found, checkpoint.digest, checkpoint.bytes)


def _converted(path: Path, checkpoint: Checkpoint) -> Path:
    """`path`, if it says that it was converted from the checkpoint; that it is whole is checked as it is read."""
    source = safetensors.read(path).metadata.get("source_sha256")
    if not source or source != checkpoint.sha256:
        raise BadFileError(
            f"{path} was not converted from the published file: its source_sha256 is {str(source)[:100]}, not "
            f"{checkpoint.sha256 or 'known'}; move it away to go on"
        )
    return path


def obtain(checkpoint: Checkpoint, root: Path | None = None) -> Path:
    """The verified file of a checkpoint, downloaded if it is not on this machine: to `root`, ``$PYDMOBILENET_HOME`` or
    MXNet's home, never into the package.

    Raises MissingFileError, which says what was looked for, where, and which file to put there; and BadFileError.
    """
    found = find(checkpoint, root)
    if found:
        return found
    base = (os.environ.get(MIRROR_VARIABLE) or AUTHORS_REPOSITORY).rstrip("/")
    target = fetching.search_path("models", root)[0] / checkpoint.filename
    source = fetching.Source(f"{base}/{checkpoint.path}", checkpoint.digest, checkpoint.bytes or fetching.LARGEST)
    try:
        with fetching.locked(target.parent):
            return find(checkpoint, root) or fetching.fetch([source], target)  # another process may have been faster
    except MissingFileError as error:
        looked = ", ".join(str(place) for place in places(root))
        raise MissingFileError(
            f"{checkpoint.filename} is not in {looked}, and could not be downloaded ({error}); "
            f"to go on without a network, put it into {target.parent}"
        ) from None


def read(path: Path, network: Network | None = None) -> dict[str, np.ndarray]:
    """The named arrays of a parameter file, under our structural names; those of Gluon's scopes need the network.

    Raises MissingFileError, and BadFileError for what is no parameter file or has names that are none of ours; for a
    file of PyTorch's, UnusableError where PyTorch cannot be imported.
    """
    arrays = _arrays(path)
    scoped = {} if network is None else _scoped_names(arrays, network)
    translated = {}
    for name, array in arrays.items():
        ours = structural_name(name) or scoped.get(name)
        if ours is None:
            raise BadFileError(
                f"{path} is of no network of this project, or of another than this: it has {name[:100]!r}"
            )
        if ours in translated:
            raise BadFileError(f"{path} has {ours} twice")
        translated[ours] = array
    return translated


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    if safetensors.recognised(path):
        return safetensors.read(path).arrays
    if not _is_of_pytorch(path):
        return params.read(path)
    try:
        from ..pytorch import state_dict
    except Exception as error:  # its shared libraries may be missing, or not fit together
        why = " ".join(str(error).split())[:200]
        raise UnusableError(f"{path} needs PyTorch ({why}): pip install 'pydmobilenet[torch]'") from None
    return state_dict.read(path)


def _is_of_pytorch(path: Path) -> bool:
    """Return whether a file begins as those of ``torch.save``: as a zip archive or, in the old format, as a pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith((b"PK\3\4", b"\x80"))
    except OSError:
        return False


def structural_name(name: str) -> str | None:
    """Our name of a parameter, from the authors' name or from our own (of a Wide ResNet: GluonCV's); None where it is
    neither.

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
    ours = (OUTER_PARTS if stage is None else BLOCK_PARTS).get(part)
    if ours is None:
        return None
    return f"{ours}.{kind}" if stage is None else f"stages.{stage}.{block}.{ours}.{kind}"


def _scoped_names(names: Iterable[str], network: Network) -> dict[str, str]:
    """The structural names for names of Gluon's scopes, if they are those of such a network; else nothing."""
    kinds = {Convolution: "conv", BatchNorm: "batchnorm", Dense: "dense"}
    theirs = _places(names)
    for scope in (lambda layer: "", _scope_of_gluoncv):
        ours = {}
        numbers: Counter[str] = Counter()
        for layer in (layer for layer in lower(network).layers if layer.parameters):
            kind = scope(layer) + kinds[type(layer)]
            for name in layer.parameters:
                ours[f"{kind}_{name}", numbers[kind]] = f"{layer.name}.{name}"
            numbers[kind] += 1
        if ours.keys() == set(theirs.values()):
            return {name: ours[place] for name, place in theirs.items()}
    return {}


def _scope_of_gluoncv(layer: Layer) -> str:
    """The scopes that GluonCV has around a layer of a Wide ResNet, without their numbers."""
    return "cifarwideresnet_stage_" if layer.name.count(".") > 1 else "cifarwideresnet_"


def _places(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The kind of each name of Gluon's scopes, and its place among those of its kind.

    Gluon numbers the layers of a kind, ``conv33_weight``, in the order in which a process makes them, of whatever
    networks they are: so the order tells which layer it is, and the number does not.
    """
    numbers = re.compile(r"\d+(?=_)")
    kinds = defaultdict(list)
    for name in names:
        kinds[numbers.sub("", re.sub("^(arg|aux):", "", name))].append(name)
    for alike in kinds.values():
        alike.sort(key=lambda name: [(len(number), number) for number in numbers.findall(name)])
    return {name: (kind, place) for kind, alike in kinds.items() for place, name in enumerate(alike)}


def load(path: Path, network: Network, head: Head = "required") -> dict[str, np.ndarray]:
    """The parameters of a file in float32, checked both ways against the network that they are for.

    A dense layer that is not loaded, as `head` says, is left out. Raises BadFileError unless the file has every other
    parameter of the network in its shape and no other.
    """
    arrays, wanted = read(path, network), dict(network.parameters)
    dense = [f"{network.head.name}.{name}" for name in network.head.parameters]
    differs = any(name in arrays and arrays[name].shape != wanted[name] for name in dense)
    if head == "fresh" or (head == "optional" and differs):
        wanted = {name: shape for name, shape in wanted.items() if name not in dense}
        arrays = {name: array for name, array in arrays.items() if name not in dense}
    missing = [name for name in wanted if name not in arrays]
    extra = [name for name in arrays if name not in wanted]
    other = [name for name in wanted if name in arrays and wanted[name] != arrays[name].shape]
    if missing or extra or other:
        first = (missing + extra + other)[0]
        there = arrays[first].shape if first in arrays else "absent"
        raise BadFileError(
            f"{path} does not fit the network: {len(missing)} parameters are missing, {len(extra)} left over, "
            f"{len(other)} of another shape, as {first}: {there} in the file, {wanted.get(first, 'absent')} in the "
            f"network; the file is of {describe(read(path, network))}"
        )
    return {name: np.asarray(arrays[name], np.float32) for name in wanted}


def describe(arrays: Mapping[str, np.ndarray]) -> str:
    """What network the arrays of a file belong to, as far as they tell: ``pyd-add-29-0.25 with 10 classes``."""
    try:
        if "output.bias" in arrays:
            stem = arrays["features.2.gamma"].shape[0]  # of the normalisation that GluonCV's other networks lack
            width = arrays["features.3.0.conv1.weight"].shape[0] / stem
            blocks = len({name.split(".")[2] for name in arrays if name.startswith("features.3.")})
            name = Architecture("wrn", 6 * blocks + 4, width).name
            return f"{name} with {arrays['output.bias'].shape[0]} classes"
        spatial = {name.split(".")[4] for name in arrays if ".spatial." in name}
        kernel, stem = arrays["stages.0.0.spatial.conv3.weight"].shape, arrays["stem.conv.weight"].shape[0]
        blocks = len({name.split(".")[2] for name in arrays if name.startswith("stages.0.")})
        if len(spatial) == 3:
            family = "pyd-add" if arrays["stages.0.0.expand.weight"].shape[1] == kernel[0] else "pyd-concat"
        else:
            family = "mobilenet" if kernel[1] == 1 else "resnet"
        name = Architecture(family, 9 * blocks + 2, kernel[0] / stem).name
        trunk = ", in its ImageNet32 form" if "head.features.weight" in arrays else ""
        return f"{name} with {arrays['head.dense.bias'].shape[0]} classes{trunk}"
    except (KeyError, IndexError, ZeroDivisionError):
        return "another kind of network"


def check_target(target: Path) -> None:
    """Raises InvalidValueError for a file whose name is none that `write` knows, UnusableError where it exists."""
    if target.suffix not in (params.SUFFIX, safetensors.SUFFIX):
        likely = target.with_suffix(safetensors.SUFFIX)
        allowed = f"{params.SUFFIX}, {safetensors.SUFFIX}"
        raise InvalidValueError(f"{target} ends like no parameter file; nearest: {likely.name} (allowed: {allowed})")
    sidecar = [params.sidecar(target)] if target.suffix == params.SUFFIX else []
    if any(path.name == runs.METADATA for path in sidecar):
        raise InvalidValueError(f"{target} would make its directory look like a run; choose another name")
    for path in (target, *sidecar):
        if os.path.lexists(path):
            raise UnusableError(f"{path} exists already; choose another name, or move it away")


def write(target: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write parameters under their structural names, in the format that the target's name ends with: ``.safetensors``,
    or ``.params`` for Gluon's ``net.load_parameters``, whose metadata go into a `params.sidecar`.

    Raises as `check_target` does, and UnusableError where the files cannot be written; they are put in place whole or
    not at all.
    """
    check_target(target)
    if target.suffix == safetensors.SUFFIX:
        safetensors.write(target, arrays, metadata)
        return
    content = params.dump(arrays)
    record = {**decoded(metadata), "sha256": hashlib.sha256(content).hexdigest()}
    # The sidecar first: an interruption leaves no parameters behind that would be taken for those of another task.
    files.write_together({params.sidecar(target): json.dumps(record, indent=1) + "\n", target: content})
