"""Train a network of the zoo. The recipe comes from a file in configs/; each of its keys can be set here as well.

exit code: 0 trained to the end; 1 the loss is no longer finite; 2 a mistake in the command; 130 or 143 interrupted
(129 by SIGHUP, 138 by SIGUSR1): what was trained is saved, and --resume DIR goes on exactly where it was.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .. import checkpoints, engine, processes
from ..catalog import parse_name
from ..errors import UserError
from ..text import printable
from ..training import config, prepare
from ..training import session as sessions
from ..training.loop import Loop
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
    option("--resume", metavar="DIR", help="go on with this run; auto: with that in --output, or begin it")
    beginning = parser.add_mutually_exclusive_group().add_argument
    text = f"start from those of a run, {options.WEIGHTS_FILES}, or published"
    beginning("--weights", "--init", metavar="PATH", help=text)
    text = "the same as --weights published"
    beginning("--pretrained", action="store_const", dest="weights", const=checkpoints.PUBLISHED, help=text)
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
    if arguments.weights_dir and arguments.weights != checkpoints.PUBLISHED:
        raise UserError("--weights-dir is where --weights published looks: add that, or leave it out")
    session = sessions.plan(
        config.given(arguments),
        recipe=arguments.config,
        output=arguments.output,
        resume=arguments.resume,
        weights=arguments.weights,
        weights_dir=arguments.weights_dir,
        data_dir=arguments.data_dir,
        engine=arguments.engine,
    )
    family, dtype = parse_name(session.config.model).family, session.config.dtype
    choice = engine.choose(session.engine, arguments.device, "training", family, dtype, compiled=arguments.compile)
    on = prepare.RunOptions(
        make_trainer=choice.make_trainer,
        data_dir=arguments.data_dir,
        tensorboard=arguments.tensorboard,
        quiet=quiet,
        skip_bad=arguments.skip_bad,
    )
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
    say(f"device: {choice.device}; engine: {choice.why}")
    if not session.resumed and not arguments.weights and session.config.dataset.startswith("folder:"):
        say("weights: random; --pretrained starts from the authors', which take fewer images")
    with sessions.opened(session, on) as loop:
        if session.resumed:
            done = f"{loop.progress.epochs} of {loop.config.epochs} epochs"
            say(f"resuming {printable(session.directory)} after {done}")
        if arguments.verbose:
            say(config.text(loop.config).rstrip())
        code = loop.run()
        if loop.output:
            _tell_end(loop, code)
    return code


def _tell_end(loop: Loop, code: int) -> None:
    """Print what a run has reached, or how an interrupted one goes on."""
    if not code:
        print(loop.summary())
        return
    script = os.path.basename(sys.argv[0]) == "train.py"
    program, command = ("train.py", "python train.py") if script else ("pydmobilenet", "pydmobilenet train")
    again = printable(f"{command} --resume {shlex.quote(str(loop.directory))}")
    print(f"{program}: interrupted; to go on: {again}", file=sys.stderr)
