#!/usr/bin/env python3
"""Images a second of `train.py`'s whole loop, data included, by each engine, against the usual ways to train.

gluon:

- conventional: the same graph as a trainable SymbolBlock, hybridised static, ``gluon.data.DataLoader`` with two workers
  and per-sample transforms
- own backward: `train.py`'s loop with MXNet's own backward pass of the reference network
- ours: `train.py`'s loop as it is, and limited in its instructions as `train.py` is

pytorch:

- eager: PyTorch's own parts, channels last, float32, ``DataLoader`` with two workers and per-sample transforms
- float32, bfloat16: `train.py`'s loop

All but `ours` use every instruction of the processor. All train with Nesterov SGD at a batch of 128 on images
of random pixels. Each side has its own process; they take turns of some batches, and the other sides' processes are
stopped meanwhile: the DataLoader's workers would go on.

    python benchmarks/training.py                                  # a network of each family: half an hour
    python benchmarks/training.py --engine pytorch --model 'pyd-*-29-*' --rounds 3 --threads 1 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import chain

from server import Server
from sides import BATCH

WARM_UP = 2  # batches
DEFAULT = ("resnet-29-0.5", "mobilenet-29-1", "pyd-add-29-0.25", "pyd-add-56-0.5", "pyd-concat-29-0.25")
# The sides of each engine, and which of them are compared.
SIDES = {"gluon": ("conventional", "own backward", "ours"), "pytorch": ("eager", "float32", "bfloat16")}
COMPARED = {
    "gluon": (("ours", "conventional"), ("ours", "own backward")),
    "pytorch": (("float32", "eager"), ("bfloat16", "eager")),
}


def installed() -> list[str]:
    """Return the installed engines, without an import: it would set variables for the other sides."""
    return [engine for engine, module in {"gluon": "mxnet", "pytorch": "torch"}.items() if find_spec(module)]


def ways(engine: str, side: str) -> dict[str, Callable[[str], Iterator[None]]]:
    """Return the sides of an engine, generators of one batch a step; only `side` will run."""
    if engine == "gluon":
        from sides import gluon

        return {"conventional": gluon.conventional, "own backward": gluon.own_backward, "ours": gluon.ours}
    if side != "eager":
        import pydmobilenet.pytorch  # noqa: F401  before torch, as in train.py: OpenMP reads its settings once
    from sides import pytorch

    return {
        "eager": pytorch.eager,
        "float32": lambda prefix: pytorch.ours(prefix, "float32"),
        "bfloat16": lambda prefix: pytorch.ours(prefix, "bfloat16"),
    }


def serve(engine: str, side: str) -> None:
    """Print the seconds for each ``graph batches`` on standard input; a new graph is warmed up first."""
    way, current, stream = ways(engine, side)[side], None, iter(())
    for line in sys.stdin:
        prefix, number = line.split()
        if prefix != current:
            current, stream = prefix, way(prefix)
            seconds(stream, WARM_UP, engine)
        print(seconds(stream, int(number), engine), flush=True)


def seconds(stream: Iterator[None], number: int, engine: str) -> float:
    start = time.perf_counter()
    for _ in range(number):
        next(stream)
    if engine == "gluon":
        import mxnet as mx  # already imported, in each side's own way

        mx.nd.waitall()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", default=DEFAULT, help=f"names or wildcards (default: {' '.join(DEFAULT)})"
    )
    parser.add_argument("--engine", nargs="+", choices=list(SIDES), default=installed(), help="default: all installed")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--batches", type=int, default=6, help="a round (default: 6)")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="of each side (default: as each has it)")
    arguments = parser.parse_args()
    inherited = dict(os.environ)  # before the package and MXNet add their settings
    import pydmobilenet

    names = [name for pattern in arguments.model for name in pydmobilenet.list_models(pattern, "cifar10")]
    with tempfile.TemporaryDirectory() as folder:
        for name in names if "gluon" in arguments.engine else ():
            export(name, f"{folder}/{name}")
        for threads in arguments.threads:
            for engine in arguments.engine:
                compare(engine, folder, names, environments(engine, threads, inherited), arguments)


def environments(engine: str, threads: int, inherited: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the variables of each side's process: the user's, with other threads and instruction limits."""
    from pydmobilenet import machine

    limits = (machine.VARIABLE, machine.NEWER_VARIABLE)
    clean = {key: value for key, value in inherited.items() if key not in ("OMP_NUM_THREADS", *limits)}
    if threads:
        clean["OMP_NUM_THREADS"] = str(threads)
    free = {**clean, **dict.fromkeys(limits, machine.ALL)}
    return {side: clean if side == "ours" else free for side in SIDES[engine]}


def compare(
    engine: str, folder: str, names: Sequence[str], variables: dict[str, dict[str, str]], arguments: argparse.Namespace
) -> None:
    """Print images/s of each side for each network, and their ratios."""
    from pydmobilenet import machine, provenance

    batches, threads = arguments.batches, next(iter(variables.values())).get("OMP_NUM_THREADS")
    versions = provenance.environment()
    version = versions["torch"] if engine == "pytorch" else versions["mxnet"]
    print(f"\n{machine.cpu_name()}, {machine.instruction_set(environment={})}, {engine} {version}, ", end="")
    print(f"threads: {threads or 'the default of each side'}; images/s\n")
    ratios = [f"{fast} / {slow}" for fast, slow in COMPARED[engine]]
    print("| model | " + " | ".join(chain(SIDES[engine], ratios)) + " |")
    print("| --- " + "| --: " * (len(SIDES[engine]) + len(ratios)) + "|", flush=True)
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(Server(__file__, engine, side, environment=variables[side]))
            for side in SIDES[engine]
        }
        for server in sides.values():
            server.pause()
        for name in names:
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(arguments.rounds):
                for side in sorted(sides, reverse=turn % 2 == 0):  # the first one alternates too
                    sides[side].resume()
                    rates[side].append(BATCH * batches / float(sides[side].ask(f"{folder}/{name} {batches}")))
                    sides[side].pause()
            figures = [f"{statistics.median(values):.0f}" for values in rates.values()]
            figures += [ratio(rates[fast], rates[slow]) for fast, slow in COMPARED[engine]]
            print(f"| {name} | {' | '.join(figures)} |", flush=True)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Format the median of the rounds' ratios, with the lowest and the highest."""
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def export(name: str, prefix: str) -> None:
    """Write a network's graph and parameters for SymbolBlock."""
    import mxnet as mx

    import pydmobilenet

    net = pydmobilenet.get_model(name, engine="gluon")
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(prefix)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
