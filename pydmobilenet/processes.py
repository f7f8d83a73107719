"""Processes that share this machine's processors and end with the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from ._runtime import available_processors


def threads(processes: int) -> str:
    """OpenMP's threads of each of so many processes: what the user has set, or else a share of the processors."""
    value, processors = os.environ["OMP_NUM_THREADS"], available_processors()
    # Where nothing was set, the package has set all processors: which is too many for more than one anyway.
    return str(max(1, processors // processes)) if value == str(processors) else value


def die_with(parent: int) -> None:
    """Have this process killed as soon as its parent dies, even if that is killed itself. Linux alone offers it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before
            os._exit(1)


def processors() -> int:
    """How many processors this process is to use: as many as OpenMP's threads are to be, if there are so many."""
    value = os.environ["OMP_NUM_THREADS"]
    return min(int(value), available_processors()) if value.isdigit() else 1  # OpenMP also takes lists


class Crew:
    """So many processes of Python, each begun by ``begin(*arguments)``; what goes to and fro has to be picklable.

    A context: whatever ends it, also an interruption, ends the processes.
    """

    def __init__(self, size: int, begin: Callable[..., None], *arguments: Any):
        self.threads = str(max(1, processors() // size))
        context = multiprocessing.get_context("spawn")  # MXNet's threads do not survive a fork
        self.executor = ProcessPoolExecutor(size, context, _begin, (os.getpid(), begin, arguments))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self.executor.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Future]:
        """The futures of ``function(value)``, begun in the order of the values."""
        own = os.environ["OMP_NUM_THREADS"]
        os.environ["OMP_NUM_THREADS"] = self.threads  # for the processes, which start now
        try:
            return [self.executor.submit(function, value) for value in values]
        finally:
            os.environ["OMP_NUM_THREADS"] = own


def _begin(parent: int, begin: Callable[..., None], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to deal with
    die_with(parent)
    begin(*arguments)
