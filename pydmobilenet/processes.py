"""Processes that share this machine's processors and end with the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .machine import available_processors


def threads(processes: int) -> str:
    """OpenMP's threads of each of so many processes: what the user has set, or else a share of the processors."""
    value, processors = os.environ.get("OMP_NUM_THREADS"), available_processors()
    # Where nothing was set, the package has set all processors: which is too many for more than one anyway.
    return str(max(1, processors // processes)) if value in (None, str(processors)) else value


def launched() -> bool:
    """Whether ``torchrun`` has started this process, beside others that train the same network."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """Whether ``torchrun`` has started this process again, after another one has failed."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank() -> int:
    """The number of this process among those that ``torchrun`` has started; 0 for one that stands alone."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """The number of this process among those that ``torchrun`` has started on this machine; 0 for one alone."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def die_with(parent: int) -> None:
    """Have this process killed as soon as its parent dies, even if that is killed itself. Linux alone offers it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before
            os._exit(1)


def processors() -> int:
    """How many processors this process is to use: as many as OpenMP's threads are to be, if there are so many; all
    where nothing says so, as where MXNet was imported before this package.
    """
    value = os.environ.get("OMP_NUM_THREADS", str(available_processors()))
    return min(int(value), available_processors()) if value.isdigit() else 1  # OpenMP also takes lists


class WorkerPool:
    """So many processes of Python, each begun by ``begin(*arguments)``; what goes to and fro has to be picklable.

    A context: whatever ends it, also an interruption, ends the processes.
    """

    def __init__(self, size: int, begin: Callable[..., None], *arguments: Any):
        self.threads = str(max(1, processors() // size))
        self.beginning = os.getpid(), begin, arguments
        # A pool a process: one that dies breaks its whole pool, and so no more than the value that it worked on.
        self.pools = [self._pool() for _ in range(size)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., Any], values: Iterable[Any]) -> Iterator[tuple[Any, Future]]:
        """Each value with the finished future of ``function(value)``, as soon as it is finished.

        They are begun in their order. A value on which a process dies is tried once more, by a new process and after
        all the others; the future of one on which that dies too raises BrokenProcessPool.
        """
        waiting = deque((value, True) for value in values)
        idle = list(range(len(self.pools)))
        working: dict[Future, tuple[int, Any, bool]] = {}
        while waiting or working:
            while waiting and idle:
                place, (value, again) = idle.pop(), waiting.popleft()
                working[self._submit(place, function, value)] = place, value, again
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            for future in finished:
                place, value, again = working.pop(future)
                idle.append(place)
                died = isinstance(future.exception(), BrokenProcessPool)
                if died:
                    self.pools[place].shutdown()
                    self.pools[place] = self._pool()
                if died and again:
                    waiting.append((value, False))
                else:
                    yield value, future

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # MXNet's threads do not survive a fork
        return ProcessPoolExecutor(1, context, _begin, self.beginning)

    def _submit(self, place: int, function: Callable[..., Any], value: Any) -> Future:
        own = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = self.threads  # for the process, which starts now unless it has already
        try:
            return self.pools[place].submit(function, value)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.pools[place] = self._pool()
            return self.pools[place].submit(function, value)
        finally:
            if own is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = own


def _begin(parent: int, begin: Callable[..., None], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to deal with
    die_with(parent)
    begin(*arguments)
