"""Processes that share this machine's processors and end with the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from .machine import available_processors


def launched() -> bool:
    """Tell whether ``torchrun`` has started this process, beside others that train the same network."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """Tell whether ``torchrun`` has started this process again, after another one has failed."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank() -> int:
    """Return the number of this process among torchrun's; 0 for one that stands alone."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Return the number of this process among torchrun's on this machine; 0 for one that stands alone."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def die_with(parent: int) -> None:
    """Have this process killed as soon as its parent dies, even if that is killed itself. Linux alone offers it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before
            os._exit(1)


def processors() -> int:
    """Count the processors to use: as many as OpenMP's threads are to be; all where nothing says so, as where MXNet was
    imported before this package.
    """
    value = os.environ.get("OMP_NUM_THREADS", str(available_processors()))
    return min(int(value), available_processors()) if value.isdigit() else 1  # OpenMP also takes lists


def run_each(
    function: Callable[..., Any], values: Iterable[Any], size: int
) -> Generator[tuple[Any, Future], None, None]:
    """Run ``function(value)`` for each value, in so many processes; yield a value with its future once it is finished.

    The values are begun in their order. Where a process dies, the future of its value raises BrokenProcessPool, and a
    new process takes its place. To close the iterator ends the processes, and so does an interruption.
    """
    waiting = deque(values)
    working: dict[Future, tuple[ProcessPoolExecutor, Any]] = {}
    with _threads(max(1, processors() // size)), ExitStack() as stack:

        def pool() -> ProcessPoolExecutor:  # of one process: one that dies breaks its whole pool
            context = multiprocessing.get_context("spawn")  # MXNet's threads do not survive a fork
            return stack.enter_context(ProcessPoolExecutor(1, context, _begin, (os.getpid(),)))

        idle = [pool() for _ in range(size)]
        try:
            while waiting or working:
                while waiting and idle:
                    own, value = idle.pop(), waiting.popleft()
                    working[own.submit(function, value)] = own, value
                finished, _ = wait(working, return_when=FIRST_COMPLETED)
                for future in finished:
                    own, value = working.pop(future)
                    idle.append(pool() if isinstance(future.exception(), BrokenProcessPool) else own)
                    yield value, future
        finally:
            for process in multiprocessing.active_children() if working else ():
                process.terminate()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give each process that is started meanwhile so many of OpenMP's threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to deal with
    die_with(parent)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that is killed leaves behind


URGENT = (signal.SIGINT, signal.SIGTERM)
# Of a terminal that was closed, and of Slurm before its time is up; Windows has neither.
POLITE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
STOP_SIGNALS = (*URGENT, *POLITE)


@contextmanager
def handle_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the number of each signal that comes; a second SIGINT or SIGTERM ends the process at once.

    Under torchrun, repeats are ignored: torchrun forwards a signal to workers that already have it. Those that are not
    done after 30 seconds it kills. SIGHUP and SIGUSR1 are left to whoever ignores them, as nohup does, or handles them.
    Python handles signals in the main thread alone: in another thread, all are left as they are.
    """

    def handle(number: int, _frame: object) -> None:
        stop(number)
        if number in URGENT and not launched():
            signal.signal(number, earlier[signal.Signals(number)])

    own: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        own = [*URGENT, *(number for number in POLITE if signal.getsignal(number) == signal.SIG_DFL)]
    earlier = {number: signal.signal(number, handle) for number in own}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
