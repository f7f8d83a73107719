"""Train a network of the zoo. The recipe comes from a file in configs/; each of its keys can be set here as well.

exit code: 0 trained to the end; 1 the loss is no longer finite; 2 a mistake in the command; 130 or 143 interrupted:
what was trained is saved, and --resume DIR goes on exactly where it was.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .. import engine, fetching, processes, zoo
from ..errors import UserError
from ..text import printable
from ..training import checkpoint, config, prepare
from . import options


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("data", nargs="?", metavar="DATA", help="the data set, as --dataset: a name, or a folder of images")
    option(
        "--config",
        type=Path,
        metavar="FILE",
        help="the recipe, or the name of one in configs/ (default: that of the data set)",
    )
    text = "gluon, pytorch, or auto (default): Gluon where MXNet runs on the device, else PyTorch; of a run, its own"
    option("--engine", default="auto", metavar="NAME", help=text)
    option("--device", "-g", default="auto", help="auto (default), cpu, gpu, gpu:N, mps; by Gluon gpu:0,1, cpu:0,1")
    option("--compile", action="store_true", help="PyTorch: compile the network, on a GPU to CUDA graphs")
    options.add_data_dir(parser)
    options.add_skip_bad(parser)
    option("--output", type=Path, metavar="DIR", help="the run's directory (default: runs/MODEL-DATASET)")
    option("--resume", type=Path, metavar="DIR", help="go on with the run in this directory")
    beginning = parser.add_mutually_exclusive_group().add_argument
    text = f"start from those of a run, {options.WEIGHTS_FILES}, or published"
    beginning("--weights", "--init", metavar="PATH", help=text)
    text = "the same as --weights published"
    beginning("--pretrained", action="store_const", dest="weights", const=zoo.PUBLISHED, help=text)
    options.add_weights_dir(parser)
    option("--tensorboard", action="store_true", help="write events for TensorBoard")
    option("-q", "--quiet", action="store_true", help="print nothing but the errors at the end")
    option("-v", "--verbose", action="store_true", help="print the effective configuration first")
    config.add_options(parser)


def run(arguments: Namespace) -> int:
    if arguments.data and arguments.dataset:
        raise UserError(f"{arguments.data} and --dataset {arguments.dataset} are two data sets: give one of them")
    arguments.dataset = arguments.data or arguments.dataset
    quiet = arguments.quiet
    if processes.rank() > 0:  # of several processes, the first one speaks
        quiet = True
        warnings.simplefilter("ignore")
    if arguments.resume and (arguments.output or arguments.config or arguments.weights):
        raise UserError("--resume takes all of that from the run: leave out --output, --config, --weights")
    if not arguments.resume:
        prepare.check_places(arguments.dataset, arguments.data_dir)
    if arguments.weights_dir and arguments.weights != zoo.PUBLISHED:
        raise UserError("--weights-dir is where --weights published looks: add that, or leave it out")
    if arguments.resume:
        directory = fetching.expanded(arguments.resume)
        recipe = prepare.read_config(directory)
        prepare.check_same(config.given(arguments), recipe)
        name = prepare.engine_of(directory, arguments.engine)
    else:
        recipe = prepare.configure(config.given(arguments), arguments.config, arguments.weights)
        directory = fetching.expanded(arguments.output or prepare.default_directory(recipe))
        checkpoint.check_absent(directory)
        name = arguments.engine

    choice = engine.choose_trainer(name, options.device_name(arguments.device), recipe.dtype, arguments.compile)
    on = prepare.RunOptions(
        make_trainer=choice.make_trainer,
        data_dir=arguments.data_dir,
        tensorboard=arguments.tensorboard,
        quiet=quiet,
        skip_bad=arguments.skip_bad,
    )
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
    say(f"device: {choice.device}; engine: {choice.why}")
    if arguments.resume:
        loop = prepare.resume(directory, on)
        say(f"resuming {printable(directory)} after {loop.progress.epochs} of {loop.config.epochs} epochs")
    else:
        init = None
        if not arguments.weights and recipe.dataset.startswith("folder:"):
            say("weights: random; --pretrained starts from the authors', which take fewer images")
        if arguments.weights:
            init = prepare.initial_weights(recipe, arguments.weights, arguments.weights_dir)
        loop = prepare.start(recipe, directory, on, init)
    if arguments.verbose:
        say(config.text(loop.config).rstrip())
    code = loop.run()
    if code and loop.output:
        script = os.path.basename(sys.argv[0]) == "train.py"
        command = "python train.py" if script else "pydmobilenet train"
        again = f"{command} --resume {shlex.quote(str(directory))}"
        print(f"{'train.py' if script else 'pydmobilenet'}: interrupted; to go on: {printable(again)}", file=sys.stderr)
    elif loop.output:
        print(loop.summary())
    return code
