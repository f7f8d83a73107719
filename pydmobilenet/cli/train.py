"""Train a network of the zoo. The recipe comes from a file in configs/; each of its keys can be set here as well.

exit code: 0 trained to the end; 1 the loss is no longer finite; 2 a mistake in the command; 130 or 143 interrupted
(129 by SIGHUP, 138 by SIGUSR1): what was trained is saved, and --resume DIR goes on exactly where it was.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from argparse import ArgumentParser
from typing import Any

from .. import api, checkpoints, processes, provenance
from ..errors import UserError
from ..text import printable
from ..training import config
from . import options


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("data", nargs="?", metavar="DATA", help="the data set, as --dataset: a name, or a folder of images")
    text = "the recipe, or the name of one in configs/ (default: that of the data set)"
    option("--config", metavar="FILE", help=text)
    text = "gluon, pytorch, or auto (default): Gluon where MXNet runs on the device, else PyTorch; of a run, its own"
    option("--engine", default="auto", metavar="NAME", help=text)
    text = "auto (default), cpu, gpu, gpu:N, mps; by Gluon gpu:0,1, cpu:0,1"
    option("-g", "--device", default="auto", help=text)
    option("--compile", action="store_true", help="PyTorch: compile the network, on a GPU to CUDA graphs")
    options.add_data_dir(parser)
    options.add_skip_bad(parser)
    option("--output", metavar="DIR", help="the run's directory (default: runs/MODEL-DATASET)")
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


def run(data: str | None, dataset: str | None, quiet: bool, **others: Any) -> int:
    if data and dataset:
        raise UserError(f"{data} and --dataset {dataset} are two data sets: give one of them")
    is_first = processes.rank() == 0  # of several processes, which alone speaks
    if not is_first:
        warnings.simplefilter("ignore")
    progress = False if quiet else None
    try:
        trained = api.train(dataset=data or dataset, **others, progress=progress, command=provenance.command())
    except api.Interrupted as stop:
        if is_first:
            script = os.path.basename(sys.argv[0]) == "train.py"
            program, command = ("train.py", "python train.py") if script else ("pydmobilenet", "pydmobilenet train")
            again = printable(f"{command} --resume {shlex.quote(str(stop.directory))}")
            print(f"{program}: interrupted; to go on: {again}", file=sys.stderr)
        return stop.exit_code
    if quiet and trained.summary:
        print(trained.summary)
    return 0
