"""What the commands do, as functions: `train`, `validate`, `predict`, `export`, and `get_model`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from . import catalog, checkpoints, data, fetching, huggingface, prediction, validation
from . import engine as engines
from .catalog import Record, parse_name
from .checkpoints import runs
from .checkpoints.runs import read_metadata
from .errors import BadFileError, InvalidValueError, hinted
from .training import prepare
from .training import session as sessions
from .training.checkpoint import read_history
from .training.config import parse
from .training.history import History

if TYPE_CHECKING:
    import numpy as np
    import torch  # noqa: TID251  for its types alone
    from mxnet import Context  # noqa: TID251
    from PIL.Image import Image
    from torch import nn  # noqa: TID251

    from .gluon.blocks import HybridBlock
    from .onnx.export import Difference

PathLike = Union[str, "os.PathLike[str]"]

get_dataset = hinted(data.get_dataset)


@hinted
def get_model(
    name: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    pretrained: bool = False,
    device: str | Context | torch.device | None = None,
    weights: PathLike | None = None,
    weights_dir: PathLike | None = None,
    engine: str = "auto",
) -> HybridBlock | nn.Module:
    """A network of the zoo: normalised images (N, 3, 32, 32) in float32 to logits (N, outputs).

    `engine` is ``gluon``, for a HybridBlock, or ``pytorch``, for an ``nn.Module`` in evaluation mode; ``auto`` is Gluon
    where MXNet is there, else PyTorch. (`pydmobilenet.pytorch.get_model` is the latter, with its type.)

    `name` is ``resnet-29-0.5``, ``mobilenet-56-1.5``, ``pyd-add-29-0.25``, ``pyd-concat-56-0.75``, ``wrn-28-10`` or any
    other of that form (`catalog.parse_name`); weights that record their network need none. `dataset`, by default that
    of the weights or ``cifar10``, sets the number of outputs, unless `classes` does, and on ``imagenet32`` the wider
    network.

    `weights` is a run of ``train.py``, of which the best parameters are loaded, a file of parameters (also a state dict
    of PyTorch's), or a directory in Hugging Face's layout. `pretrained` loads the bundled or the authors' weights for
    the data set, found in `weights_dir` or where `weights.places` says, else downloaded; with `classes`, for a data set
    without any, those for CIFAR-10. Where the classes are others, the dense layer is drawn anew. Without either, all
    parameters are (He initialisation). `device` is a name, as ``gpu:0``, or the engine's own object; by default MXNet's
    current context, or the CPU.

    Raises InvalidValueError, MissingFileError, BadFileError or UnusableError, which are ValueError, FileNotFoundError,
    ValueError and OSError; UnusableError too where the engine is not installed.
    """
    choice = engines.choose(engine, "cpu", "networks", _family(name, weights))
    return choice.get_model(name, dataset, classes, pretrained, device, weights, weights_dir)


def _family(name: str | None, weights: PathLike | None) -> str | None:
    """Return the family of a model's name, or of weights that record it."""
    if name is None and weights is not None:
        found = checkpoints.inspect(weights)
        name = found.model if found else None
    return parse_name(name).family if name else None


@dataclass(frozen=True)
class Run:
    """A run that was trained: its `directory`, and what is in it. It stands for its path."""

    directory: Path

    def __fspath__(self) -> str:
        return os.fspath(self.directory)

    @property
    def history(self) -> History:
        """The epochs so far, each with its losses, errors and learning rate: ``run.history.rows``."""
        return read_history(self.directory)

    @property
    def test_error(self) -> float | None:
        """The test error in % of the best epoch; None where it is not measured yet, or there are no test images."""
        best = read_metadata(self.directory)["checkpoints"].get(runs.BEST, {})
        return best.get("test_error")

    def model(self, device: str | None = None, engine: str = "auto") -> HybridBlock | nn.Module:
        """The network with the parameters of the best epoch, as `get_model` gives it. Raises MissingFileError before
        the first one.
        """
        return get_model(weights=self, device=device, engine=engine)


def train(
    model: str | None = None,
    dataset: PathLike | None = None,
    *,
    output: PathLike | None = None,
    resume: PathLike | None = None,
    config: PathLike | None = None,
    weights: PathLike | None = None,
    engine: str = "auto",
    device: str = "auto",
    compile: bool = False,
    data_dir: PathLike | None = None,
    skip_bad: bool = False,
    progress: bool = True,
    **recipe: object,
) -> Run:
    """Train a network as ``train.py`` does, to the end. The run has its `directory`, its `history` and its `model`.

    `model` and `dataset` (default: ``cifar10``) are names; a data set is the path of a folder of images too. The recipe
    is the file `config`, or the name of one of ``configs/``, by default that of the data set; any of its keys can be
    given, as ``epochs=4`` or ``val_fraction=0.1``. The run's directory is `output`, by default ``runs/MODEL-DATASET``,
    which must not exist; `resume` goes on with a run instead, and ``resume="auto"`` with that in `output` if there is
    one. `weights` are those to start from: a file, a run, whose network is the default then, or ``"published"``.
    `engine` is ``gluon`` or ``pytorch``; ``auto`` is Gluon where MXNet runs on the device, else PyTorch, and for a run
    to resume its own. `compile` has PyTorch compile the network. Without `progress`, nothing is printed.

    Any thread can call it. Raises InvalidValueError, MissingFileError, BadFileError and UnusableError. An interruption
    saves the run, and then raises KeyboardInterrupt. What fails before the first batch is done leaves no directory.
    """
    arguments = dict(locals())
    given = parse({"model": model, "dataset": dataset, **recipe})
    where = None if data_dir is None else fetching.expanded(data_dir)
    session = sessions.plan(
        given, recipe=config, output=output, resume=resume, weights=weights, data_dir=where, engine=engine
    )
    family, dtype = parse_name(session.config.model).family, session.config.dtype
    choice = engines.choose(session.engine, device, "training", family, dtype, compiled=compile)
    options = prepare.RunOptions(
        choice.make_trainer,
        where,
        quiet=not progress,
        skip_bad=skip_bad,
        progress=progress,
        command=_call(train, {**arguments, **given}),
    )
    with sessions.opened(session, options) as loop:
        interrupted = loop.run()
        if progress and loop.output and not interrupted:
            print(loop.summary())
    if interrupted:
        raise KeyboardInterrupt(f"the run is saved: resume={str(session.directory)!r} goes on with it")
    return Run(session.directory)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The call of a function as it can be typed again, without arguments that have their default."""
    known = inspect.signature(function).parameters
    words: list[str] = []
    for position, (name, value) in enumerate(arguments.items()):
        if name == "recipe" or (name in known and value == known[name].default):
            continue
        keyword = "" if name in ("model", "dataset") and position == len(words) else f"{name}="
        words.append(f"{keyword}{os.fspath(value) if isinstance(value, os.PathLike) else value!r}")
    return f"pydmobilenet.{function.__name__}({', '.join(words)})"


@hinted
def validate(
    what: PathLike | Sequence[str] = "*",
    dataset: str | Sequence[str] | None = None,
    *,
    engine: str = "auto",
    device: str = "auto",
    data_dir: PathLike | None = None,
    weights_dir: PathLike | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    processes: int = 1,
    progress: bool = True,
) -> list[validation.Result]:
    """Check networks on their test images, as ``run_validation.py`` does: one result per network.

    `what` is a run, its directory, one of its files or another path that records its network, or patterns of model
    names of the published tables and the bundled networks; `dataset` patterns of data sets. Raises as `train` does;
    what is wrong with one row is its ``reason``.
    """
    records = _records(what, [dataset] if isinstance(dataset, str) else dataset)
    where = None if weights_dir is None else fetching.expanded(weights_dir)
    found = validation.validate(
        records,
        _engine(engine, device),
        weights=functools.partial(checkpoints.load_record, weights_dir=where),
        data_dir=None if data_dir is None else fetching.expanded(data_dir),
        batch_size=batch_size,
        limit=limit,
        processes=processes,
        skip_bad=skip_bad,
        shown=progress,
    )
    return [result for _, rows in found for result in rows]


@hinted
def predict(
    images: PathLike | np.ndarray | Image | Iterable[PathLike | np.ndarray | Image],
    model: str | None = None,
    dataset: str | None = None,
    *,
    weights: PathLike = checkpoints.PUBLISHED,
    weights_dir: PathLike | None = None,
    top: int = 3,
    image_size: int | None = None,
    skip_bad: bool = False,
    engine: str = "auto",
    device: str = "auto",
) -> list[prediction.Prediction]:
    """The likeliest classes of images, as ``pydmobilenet predict`` gives them.

    `images` are files or folders, Pillow's images, or arrays of pixels (H, W, 3) in uint8, of any size: one, several,
    or an array (N, H, W, 3). The network is a `model` with its `weights`: a run (which tells the model itself), a file,
    or the published ones. It sees the images in `image_size`, by default that which it was trained with. Raises as
    `train` does.
    """
    source = checkpoints.find(model, dataset, weights, weights_dir, image_size)
    given = prediction.collect(images)
    network = _engine(engine, device).load(source.network, source.arrays())
    found = list(prediction.predict(network, source.task, given, top, skip_bad))
    if not found:
        raise BadFileError(f"none of the {len(given)} images can be read")
    return found


@hinted
def export(
    model: str | None,
    output: PathLike,
    dataset: str | None = None,
    *,
    format: str = "onnx",
    weights: PathLike = checkpoints.PUBLISHED,
    weights_dir: PathLike | None = None,
    image_size: int | None = None,
    fused: bool = True,
    uint8_input: bool = False,
    data_dir: PathLike | None = None,
    engine: str = "auto",
) -> Difference | None:
    """Write a network as an ONNX file, as ``pydmobilenet export`` does, once it has been shown to be the same function:
    how far its answers are from the engine's. Or, with the `format` ``huggingface``, as a directory in that layout,
    which needs none of the options after `weights_dir`. Raises as `train` does.
    """
    huggingface.check_format(format, fused=fused, uint8_input=uint8_input, data_dir=data_dir, engine=engine)
    source = checkpoints.find(model, dataset, weights, weights_dir, image_size)
    if format == huggingface.FORMAT:
        huggingface.write(source, fetching.expanded(output))
        return None
    from .onnx import export as onnx

    where = fetching.expanded(data_dir) if data_dir else None
    images, _ = onnx.comparison_images(source.task, where, dataset)
    reference = _engine(engine, "cpu", fused=False).load(source.network, source.arrays())
    return onnx.export_source(source, fetching.expanded(output), images, reference, fused, uint8_input)


def _engine(name: str, device: str, fused: bool = True) -> engines.Engine:
    return engines.choose(name, device, fused=fused).engine


def _records(what: PathLike | Sequence[str], datasets: Sequence[str] | None) -> list[Record]:
    rows: list[Record] = [*catalog.RECORDS, *checkpoints.bundled()]
    patterns: Sequence[str] = ["*"]
    if isinstance(what, os.PathLike) or (isinstance(what, str) and os.path.exists(fetching.expanded(what))):
        rows = [checkpoints.find(weights=what)]
    else:
        patterns = [what] if isinstance(what, str) else what
    records = catalog.select(patterns, datasets or ["*"], records=rows)
    if not records:
        raise InvalidValueError("no row has both the model and the data set asked for")
    return records
