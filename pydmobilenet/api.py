"""The commands as functions: `get_model`, `train`, `validate`, `predict`, `export`. `cli` calls them and prints."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from . import catalog, checkpoints, data, exporting, fetching, files, provenance
from . import engine as engines
from .data import Dataset
from .errors import Interrupted, InvalidValueError, UserError, hinted
from .run import Run
from .text import printable

if TYPE_CHECKING:
    import numpy as np
    import torch  # noqa: TID251  for its types alone
    from mxnet import Context  # noqa: TID251
    from PIL.Image import Image
    from torch import nn  # noqa: TID251

    from .exporting import Difference
    from .gluon.network import HybridBlock
    from .prediction import Prediction
    from .reporting.comparison import Comparison
    from .reporting.html import Report
    from .training.history import Epoch
    from .validation import Result

PathLike = Union[str, "os.PathLike[str]"]

get_dataset = hinted(data.get_dataset)
array_dataset = hinted(data.array_dataset)


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
    """Return a network: normalised images (N, 3, 32, 32) in float32 to logits (N, outputs).

    `engine` is ``gluon``, for a HybridBlock, or ``pytorch``, for an ``nn.Module`` in evaluation mode; ``auto`` is Gluon
    if MXNet is installed, else PyTorch.

    `name` is ``resnet-29-0.5``, ``mobilenet-56-1.5``, ``pyd-add-29-0.25``, ``pyd-concat-56-0.75``, ``wrn-28-10`` or any
    other of that form (`catalog.parse_name`). Weights that record their network need none. `dataset`, by default that
    of the weights or ``cifar10``, sets the number of outputs, unless `classes` does; ``imagenet32`` has wider networks.

    `weights` is a run, for its best parameters, a file of parameters or of a PyTorch state dict, or a directory in
    Hugging Face's layout. `pretrained` loads the bundled or the authors' weights for the data set, from `weights_dir`,
    the usual directories or the network; with other `classes`, those for CIFAR-10. Other classes get a new dense layer.
    Without weights, parameters are drawn by He initialisation. `device` is a name, as ``gpu:0``, or the engine's own
    object; by default MXNet's current context, or the CPU.

    Raises InvalidValueError, MissingFileError, BadFileError or UnusableError, subclasses of ValueError,
    FileNotFoundError, ValueError and OSError.
    """
    source = checkpoints.resolve(name, dataset, classes, pretrained, weights, weights_dir)
    return engines.get_model(source, engine, device)


def train(
    model: str | None = None,
    dataset: PathLike | Dataset | None = None,
    *,
    val: Dataset | None = None,
    test: Dataset | None = None,
    output: PathLike | None = None,
    resume: PathLike | None = None,
    config: PathLike | None = None,
    weights: PathLike | None = None,
    weights_dir: PathLike | None = None,
    teacher: PathLike | None = None,
    engine: str = "auto",
    device: str = "auto",
    compile: bool = False,
    pyramid: str = "conv2d",
    data_dir: PathLike | None = None,
    skip_bad: bool = False,
    cache: bool = True,
    tensorboard: bool = False,
    seeds: int | str | Sequence[int] | None = None,
    jobs: int | None = None,
    progress: bool | None = None,
    verbose: bool = False,
    on_epoch: Callable[[Run, Epoch], object] | None = None,
    command: str | None = None,
    freeze: bool = False,
    **recipe: object,
) -> Run:
    """Train a network as ``train.py`` does, to the end.

    `dataset` is a name, a folder of images, or an `array_dataset` with perhaps others of its classes as `val` and
    `test`. Without these, ``val_fraction`` and ``test_fraction`` hold images out, as of a folder. The recipe is the
    file `config`, or one of ``configs/`` by name, by default that of the data set; any key can be set here, as
    ``epochs=4``. The run goes to a new directory `output`, by default ``runs/MODEL-DATASET``; `resume` continues a run
    instead, and ``resume="auto"`` the one in `output` if there is one. `weights` to start from are a file, a run, or
    ``"published"``, looked for in `weights_dir` first; if they record their model, it is the default one. A `teacher`
    to learn from, in PyTorch, is a run, a file, or the name of a model with published weights; on resume it is the
    recorded one by default. `engine` is ``gluon`` or ``pytorch``; ``auto`` is Gluon if MXNet runs on the device, and
    for a run to resume its own. `compile` is for PyTorch, and `pyramid`, ``conv2d`` or on a GPU ``triton``. `freeze`
    trains the last layer alone, as ``body_rate=0``. Without `cache`, all pictures are decoded, and none is kept for
    later. `progress` shows bars (None: on a terminal); False prints nothing. `verbose` prints the configuration. The
    run records `command`, by default this call.

    The first process calls `on_epoch` after each epoch with the run and its new row, once all is on the disk. If it
    raises `StopTraining`, the run ends as a finished one; any other exception is passed on.

    `seeds`, a number or a list, trains a run for each in a process of its own, `jobs` at once: the result's `runs`.

    Works in any thread. Raises InvalidValueError, MissingFileError, BadFileError and UnusableError. An interruption
    saves the run and raises KeyboardInterrupt. An error before the first batch leaves no directory.
    """
    arguments = dict(locals())
    from .training import session as sessions
    from .training.config import parse

    arrays = data.given_splits(dataset, val, test)
    if on_epoch is not None and not callable(on_epoch):
        raise InvalidValueError(f"on_epoch is {str(on_epoch)[:100]!r} (allowed: a function of the run and its row)")
    given = parse({"model": model, "dataset": None if arrays else dataset, **recipe})
    if freeze and given.setdefault("body_rate", 0.0) != 0:
        raise UserError(f"pass either --freeze or --body-rate {given['body_rate']:g}, not both")
    if seeds is not None or jobs is not None or _holds_seeds(resume):
        return _train_seeds(given, arguments)
    session = sessions.plan(
        given,
        config,
        output,
        resume,
        engine,
        weights,
        _expanded(weights_dir),
        teacher=teacher,
        data_dir=_expanded(data_dir),
        arrays=arrays,
        skip_bad=skip_bad,
        cache=cache,
        tensorboard=tensorboard,
        progress=progress,
        verbose=verbose,
        on_epoch=None if on_epoch is None else lambda directory, row: on_epoch(Run(directory), row),
        command=command or provenance.call(train, {**arguments, **given}),
    )
    made, distilled = session.config, session.teacher is not None
    asked = {"distilled": distilled, "averaged": made.ema > 0, "qat": made.qat, "compiled": compile}
    family = catalog.parse_name(made.model).family
    choice = engines.choose(session.engine, device, "training", family, made.dtype, pyramid=pyramid, **asked)
    session.say(f"Training {choice}.")
    with sessions.opened(session, choice.make_trainer) as loop:
        exit_code = loop.run()
    if exit_code:
        raise Interrupted(session.directory, exit_code)
    run = Run(session.directory, loop.summary() if loop.output else "")
    if run.summary and progress is not False:
        print(run.summary)
    return run


def _holds_seeds(resume: PathLike | None) -> bool:
    from .checkpoints import runs

    return resume is not None and bool(runs.seeds(fetching.expanded(resume)))


def _train_seeds(given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Run:
    """Train a run for each seed; `arguments` are those of `train`. Raises as that, and SeedsFailed."""
    from .training import seeds as several

    if arguments["seeds"] is None and not _holds_seeds(arguments["resume"]):
        raise UserError("--jobs is only used with --seeds")
    for key in ("on_epoch", "val", "test"):
        if arguments[key] is not None:
            raise InvalidValueError(f"seeds train in processes of their own, which {key} does not reach: leave it out")
    if not isinstance(arguments["dataset"], (str, os.PathLike, type(None))):
        raise InvalidValueError("seeds train in processes of their own: dataset has to be a name or a folder")
    several.check_jobs(arguments["jobs"])
    command = arguments["command"] or provenance.call(train, {**arguments, **given})
    names = ("seeds", "config", "output", "resume", "weights", "weights_dir", "teacher")
    chosen = {key: arguments[key] for key in names}
    directory = several.plan(given, **chosen, command=command)
    options = {**{key: arguments[key] for key in several.OPTIONS}, "no_cache": not arguments["cache"]}
    processes = several.Processes(directory, options, arguments["jobs"], arguments["progress"] is not False)
    if exit_code := processes.run():
        raise Interrupted(directory, exit_code)
    run = Run(directory, several.summary(directory), tuple(map(Run, several.directories(directory))))
    if arguments["progress"] is not False:
        print(run.summary)
    if processes.failures:
        raise several.SeedsFailed(processes.failures)
    return run


@hinted
def validate(
    what: PathLike | Sequence[str] = "*",
    dataset: str | Sequence[str] | Dataset | None = None,
    *,
    weights: PathLike | Sequence[PathLike] = (),
    depth: Sequence[int] = (),
    engine: str = "auto",
    device: str = "auto",
    data_dir: PathLike | None = None,
    weights_dir: PathLike | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    cache: bool = True,
    fused: bool = True,
    processes: int | None = 1,
    mirror: bool = False,
    against: PathLike | None = None,
    output: PathLike | None = None,
    progress: bool | None = None,
    show: Callable[[Dataset | None, list[Result]], None] | None = None,
) -> list[Result]:
    """Evaluate networks on their test images, as ``run_validation.py`` does: one result per network.

    `what` is a run, a file of weights that records its network, a file of `export`, or patterns of model names in the
    tables; `dataset` has patterns of data sets, or a folder or an `array_dataset` with images for the runs. `weights`
    are more runs and files; then the patterns select among their networks, and `depth` by depth. `fused` folds the
    networks. `processes` work side by side (None: as many as are fastest). `mirror` also measures the mean softmax of
    each image and its mirror image: the results' ``mirror_error``, never judged. `against`, an earlier ``answers.csv``
    of the same images, is compared image by image: their ``change``. A report goes to the directory `output`: Markdown,
    CSV, JSON, a web page, and the answers. `show` is called with each data set and its results as they come. `cache`
    and `progress` are as for `train`.

    Raises as `train`; the error of a single row is its ``reason``.
    """
    from . import answers, exported, validation

    earlier = None if against is None else answers.read(fetching.expanded(against))
    if earlier and output is not None and earlier.path.resolve().parent == fetching.expanded(output).resolve():
        raise UserError(f"{earlier.path} would be replaced by the new report: choose another output")
    report: Report | None = None
    if output is not None:
        from .reporting.html import Report  # it needs libraries that nothing else does

        report = Report(fetching.expanded(output))
    records, source = validation.select(what, dataset, weights, depth, data_dir, _expanded(weights_dir))
    choice = engines.choose(engine, device, fused=fused)
    say = (lambda text: None) if progress is False else (lambda text: print(printable(text), file=sys.stderr))
    say(f"Validating {choice}.")
    for path, runtime in exported.runtimes(records):
        say(f"{path} runs on the CPU with {runtime}.")
    evaluated = validation.validate(
        records,
        choice.engine,
        weights=functools.partial(checkpoints.load_record, weights_dir=_expanded(weights_dir)),
        source=source,
        batch_size=batch_size,
        limit=limit,
        processes=processes or choice.engine.processes,
        keep_answers=bool(output or earlier) or any(record.run for record in records),
        skip_bad=skip_bad,
        shown=progress,
        cache=cache,
        mirror=mirror,
        earlier=earlier,
    )
    results = validation.Results()
    for images, rows in evaluated:
        if images and images.note:
            say(f"data: {images.note}")
        if report:  # after each data set: an interruption loses only the current one
            report.add(images, rows)
        if show:
            show(images, rows)
        results += rows
    return results


@hinted
def compare(*runs: PathLike, output: PathLike | None = None) -> Comparison:
    """Compare runs, as ``pydmobilenet compare`` does: a list with the result of each, printed as tables.

    Each is a run, or a directory with runs in it. Errors of other images have a table of their own. Markdown, CSV and a
    web page go to the directory `output`. The list's `problems` say which runs could not be read; raises
    MissingFileError if none could.
    """
    from .reporting import comparison

    compared = comparison.compare([fetching.expanded(run) for run in runs])
    if output is not None:
        compared.write(fetching.expanded(output))
    return compared


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
) -> list[Prediction]:
    """Classify images, as ``pydmobilenet predict`` does: the `top` classes of each.

    `images` are files or folders, Pillow's images, or arrays of pixels (H, W, 3) or (3, H, W) in uint8, of any size:
    one, several, an array of N, or a data set. The network is a `model` with its `weights`: a run, a file, or the
    published ones. Images are resized to `image_size`, by default that of training. A JPEG in a file is decoded as a
    draft from 4 times that side on, as in training; an image of Pillow's is decoded in full. Raises as `train`.
    """
    from . import prediction

    source = checkpoints.find(model, dataset, weights, weights_dir, image_size)
    return list(classify(source, prediction.collect(images)[0], top, skip_bad, engine, device))


def classify(
    source: checkpoints.Checkpoint, images: Sequence[Any], top: int | None, skip_bad: bool, engine: str, device: str
) -> Iterator[Prediction]:
    """Yield the predictions for images of `prediction.collect`; without `top`, all classes."""
    from . import prediction

    network = engines.choose(engine, device).engine.load(source.network, source.arrays())
    yield from prediction.predict(network, source.task, images, top, skip_bad)


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
    measure: bool = False,
    runtime: PathLike | None = None,
    int8: bool = False,
    calibration: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Difference | None:
    """Write a network as ``pydmobilenet export`` does, and return its difference from the engine's if it was compared.

    The `format` ``onnx`` is a file; one with other answers is not written. ``tflite`` is a file for LiteRT, of pixels
    as with `uint8_input`, and ``c`` a C array of one. ``web`` is a directory with an ONNX file and a page to try it in
    browsers, by onnxruntime-web from a CDN or from npm's files in `runtime`. ``huggingface`` is a directory in that
    layout. A file in `int8` gets its ranges from `calibration` training images, by default 400. It is written whatever
    it costs, and says so. `say` is called with a line on the file; for a file, `measure` adds one on latency. Raises
    InvalidValueError, UserError for an option that the format does not have, and as `train`.
    """
    from . import export_formats, huggingface, web

    path, where = fetching.expanded(output), _expanded(data_dir)
    options = {"no_fuse": not fused, "uint8_input": uint8_input, "data_dir": data_dir, "engine": engine != "auto"}
    export_formats.check(format, path, runtime=runtime, int8=int8, calibration=calibration, **options)
    contents = None if runtime is None else web.runtime_files(fetching.expanded(runtime))
    source = checkpoints.find(model, dataset, weights, weights_dir, image_size)
    if format == huggingface.FORMAT:
        with files.new_directory(path) as part:
            huggingface.write(source, part)
        say(printable(f"wrote {path}: {source.model} for {source.task.title}, in Hugging Face's layout"))
        return None
    images = exporting.comparison_images(source.task, where, dataset)
    if engine == "auto":  # rather not ONNX Runtime's own answers
        engine = next(name for name in engines.ENGINES if not engines.obstacle(name))
    reference = engines.choose(engine, "cpu", fused=False).engine
    ranges = export_formats.calibrate(source, where, dataset, calibration) if int8 else None
    if format in (export_formats.TFLITE, export_formats.C):
        how: dict[str, Any] = {"calibration": ranges, "as_c": format == export_formats.C}
        return engines.litert("export").export_source(source, path, *images, reference, measure, say, **how)
    engines.choose("onnxruntime", "cpu")  # ONNX Runtime checks the file
    from .onnx import export as onnx

    if format == export_formats.ONNX:
        return onnx.export_source(source, path, *images, reference, fused, uint8_input, measure, say, None, ranges)
    lines: list[str] = []
    with files.new_directory(path) as part:
        web.write(source, part, contents)
        net = part / web.NETWORK
        apart = onnx.export_source(source, net, *images, reference, fused, False, False, lines.append, shown=path)
    say(*lines)
    say(printable(f"to see it: python -m http.server --directory {path}"))
    return apart


def _expanded(path: PathLike | None) -> Path | None:
    return None if path is None else fetching.expanded(path)
