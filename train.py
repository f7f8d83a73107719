#!/usr/bin/env python3
"""Train a network of the zoo. The recipe comes from a file in configs/; each of its keys can be set here as well."""

from __future__ import annotations

import functools
import shlex
import sys
import warnings
from argparse import Namespace
from pathlib import Path

try:
    from pydmobilenet import cli, fetching
    from pydmobilenet.data import get_task
    from pydmobilenet.errors import InvalidValueError, UserError
    from pydmobilenet.text import printable
    from pydmobilenet.training import config
except ImportError as error:
    print(f"train.py: error: {error}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    print("train.py: interrupted", file=sys.stderr)
    sys.exit(130)

CONFIGS = Path(__file__).resolve().parent / "configs"
RECIPES = {"imagenet32": "imagenet32.yaml", "digits": "digits.yaml"}  # of the other data sets: cifar.yaml
EPILOG = """exit code: 0 trained to the end; 1 the loss is no longer finite; 2 a mistake in the command; 130 or 143
interrupted: what was trained is saved, and --resume DIR goes on exactly where it was."""


def parse_arguments() -> Namespace:
    parser = cli.Parser(description=__doc__, epilog=EPILOG)
    option = parser.add_argument
    option(
        "--config",
        type=Path,
        metavar="FILE",
        help="the recipe, or the name of one in configs/ (default: that of the data set)",
    )
    option("--device", "-g", default="auto", help="auto (default), cpu, gpu, gpu:N, gpu:0,1, cpu:0,1")
    option("--kvstore", default="local", metavar="KIND", help="local (default), or dist_sync for several machines")
    cli.add_data_dir(parser)
    cli.add_skip_bad(parser)
    option("--output", type=Path, metavar="DIR", help="the run's directory (default: runs/MODEL-DATASET)")
    option("--resume", type=Path, metavar="DIR", help="go on with the run in this directory")
    option("--pretrained", action="store_true", help="start from the authors' weights")
    cli.add_weights_dir(parser)
    option("--init", type=Path, metavar="FILE", help="start from the weights of a .params file")
    option("--tensorboard", action="store_true", help="write events for TensorBoard")
    option("-q", "--quiet", action="store_true", help="print nothing but the errors at the end")
    option("-v", "--verbose", action="store_true", help="print the effective configuration first")
    config.add_options(parser)
    return parser.parse_args()


def configure(arguments: Namespace) -> config.Config:
    """The recipe's values, and over them what was given on the command line.

    A warm-up that the recipe has and the epochs given leave no room for keeps its share of the epochs, with a warning.
    """
    given = config.given(arguments)
    dataset = str(given.get("dataset", "cifar10"))
    recipe = arguments.config or CONFIGS / RECIPES.get(dataset, "cifar.yaml")
    bundled = CONFIGS / f"{recipe}.yaml"  # by its mere name
    values = config.read(bundled if bundled.is_file() else recipe)
    own, epochs = values.get("warmup_epochs", 0), given.get("epochs")
    if epochs and "warmup_epochs" not in given and own >= epochs and values.get("epochs"):
        values["warmup_epochs"] = own * epochs / values["epochs"]
        shorter = f"{values['warmup_epochs']:g}, its share of the recipe's {values['epochs']} epochs"
        warnings.warn(
            f"warmup_epochs {own:g} does not fit into --epochs {epochs}: shortened to {shorter}", stacklevel=2
        )
    recipe = config.make({**values, **given})
    get_task(recipe.dataset)  # of a folder too, which has to be there
    return recipe


def check_same(given: dict[str, object], run: config.Config) -> None:
    """Refuse to go on with a run under another configuration than its own."""
    wanted = config.make({**vars(run), **given})
    for key in given:
        if getattr(wanted, key) != getattr(run, key):
            raise InvalidValueError(
                f"{key} is {getattr(wanted, key)!r}, but the run to resume has {getattr(run, key)!r}; to train on with "
                "another recipe, start a run with --init on its last.params"
            )


def main() -> int:
    arguments = parse_arguments()
    if arguments.resume and (arguments.output or arguments.config or arguments.init or arguments.pretrained):
        raise UserError("--resume takes all of that from the run: leave out --output, --config, --init, --pretrained")
    if arguments.init and arguments.pretrained:
        raise UserError("--init and --pretrained are two beginnings: give one of them")
    own_folder = (arguments.dataset or "").startswith("folder:") and not arguments.resume
    if own_folder and arguments.data_dir:
        raise UserError("--dataset folder:PATH and --data-dir name two places of the data: give one of them")
    if arguments.weights_dir and not arguments.pretrained:
        raise UserError("--weights-dir is where --pretrained looks: add that, or leave it out")
    from pydmobilenet.training import checkpoint

    if arguments.resume:
        directory = fetching.expanded(arguments.resume)
    else:
        recipe = configure(arguments)
        name = f"{recipe.model}-{recipe.dataset}".replace("/", "-").replace(":", "-")
        directory = fetching.expanded(arguments.output or Path("runs") / name)
        checkpoint.check_absent(directory)

    from pydmobilenet.gluon import devices, trainer  # MXNet takes a while to import: not before the command is right
    from pydmobilenet.training import prepare

    chosen = devices.choose_several(cli.device_name(arguments.device))
    contexts = [device.context for device in chosen]
    make_trainer = functools.partial(trainer.make, contexts=contexts, kvstore=arguments.kvstore)
    options = prepare.RunOptions(
        make_trainer, arguments.data_dir, arguments.tensorboard, arguments.quiet, arguments.skip_bad
    )
    say = (lambda text: None) if arguments.quiet else (lambda text: print(text, file=sys.stderr))
    say(f"device: {'; '.join(device.why for device in chosen)}")
    if arguments.resume:
        check_same(config.given(arguments), prepare.read_config(directory))
        loop = prepare.resume(directory, options)
        say(f"resuming {printable(directory)} after {loop.progress.epochs} of {loop.config.epochs} epochs")
    else:
        init = prepare.published_weights(recipe, arguments.weights_dir) if arguments.pretrained else arguments.init
        loop = prepare.start(recipe, directory, options, init)
    if arguments.verbose:
        say(config.text(loop.config).rstrip())
    code = loop.run()
    if code:
        again = f"python train.py --resume {shlex.quote(str(directory))}"
        print(f"train.py: interrupted; to go on: {printable(again)}", file=sys.stderr)
    elif loop.output:
        print(loop.progress.history.summary())
    return code


if __name__ == "__main__":
    cli.run(main)
