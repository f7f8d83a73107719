"""Worker processes, torchrun's environment, and signals."""

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
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tqdm import tqdm

from .machine import available_processors


def launched() -> bool:
    """Tell whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """Tell whether ``torchrun`` restarted this process after a failure."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank() -> int:
    """Return torchrun's rank of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Return torchrun's local rank of this process; 0 without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def die_with(parent: int) -> None:
    """Have Linux kill this process as soon as its parent dies; do nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before
            os._exit(1)


def processors() -> int:
    """Count the processors to use: OpenMP's threads, or all processors if ``OMP_NUM_THREADS`` is not set."""
    value = os.environ.get("OMP_NUM_THREADS", str(available_processors()))
    return min(int(value), available_processors()) if value.isdigit() else 1  # OpenMP also takes lists


def run_each(
    function: Callable[..., Any], values: Iterable[Any], size: int
) -> Generator[tuple[Any, Future], None, None]:
    """Run ``function(value)`` for each value in `size` processes; yield each value with its finished future.

    If a process dies, only the future of its value raises BrokenProcessPool. Closing the iterator, or an interruption,
    ends the processes.
    """
    waiting = deque(values)
    working: dict[Future, tuple[ProcessPoolExecutor, Any]] = {}
    with _threads(max(1, processors() // size)), ExitStack() as stack:

        def pool() -> ProcessPoolExecutor:  # with one process, as one that dies breaks its whole pool
            context = multiprocessing.get_context("spawn")  # MXNet's threads do not survive a fork
            return stack.enter_context(ProcessPoolExecutor(1, context, _begin, (os.getpid(),)))

        idle = [pool() for _ in range(size)]
        try:
            while waiting or working:
                while waiting and idle:
                    worker, value = idle.pop(), waiting.popleft()
                    working[worker.submit(function, value)] = worker, value
                finished, _ = wait(working, return_when=FIRST_COMPLETED)
                for future in finished:
                    worker, value = working.pop(future)
                    idle.append(pool() if isinstance(future.exception(), BrokenProcessPool) else worker)
                    yield value, future
        finally:
            for process in multiprocessing.active_children() if working else ():
                process.terminate()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give processes started in this context so many OpenMP threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    die_with(parent)
    tqdm.set_lock(threading.RLock())  # a killed process would leak tqdm's semaphore


WATCH = "PYDMOBILENET_WATCH_INPUT"  # in the environment of a process that has to stop with its parent
_stops: list[Callable[[int], None]] = []  # of `handle_signals`, the innermost last


def stop_with_parent() -> None:
    """Stop this process, as by SIGTERM, once its standard input ends, if its parent has set `WATCH`.

    The system closes the pipe when the parent dies, however it dies, on every system.
    """
    if os.environ.pop(WATCH, ""):
        threading.Thread(target=_watch_input, daemon=True).start()


def _watch_input() -> None:
    with suppress(OSError):
        while os.read(0, 1):  # sys.stdin would hold its lock when the process ends
            pass
    if _stops:
        _stops[-1](signal.SIGTERM)  # no signal: a second one would end the process at once
    else:
        signal.raise_signal(signal.SIGTERM)


URGENT = (signal.SIGINT, signal.SIGTERM)
# Sent by a closing terminal, and by Slurm before its time limit; Windows has neither.
POLITE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
STOP_SIGNALS = (*URGENT, *POLITE)


@contextmanager
def handle_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the number of each signal; a second SIGINT or SIGTERM ends the process at once.

    Under torchrun, repeats are ignored: torchrun forwards a signal to workers that already have it, and kills them
    after 30 seconds. SIGHUP and SIGUSR1 stay with whoever ignores (nohup) or handles them. Outside the main thread,
    nothing changes, as Python handles signals there alone.
    """

    def handle(number: int, _frame: object) -> None:
        stop(number)
        if number in URGENT and not launched():
            signal.signal(number, earlier[signal.Signals(number)])

    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        numbers = [*URGENT, *(number for number in POLITE if signal.getsignal(number) == signal.SIG_DFL)]
    earlier = {number: signal.signal(number, handle) for number in numbers}
    _stops.append(stop)
    try:
        yield
    finally:
        _stops.remove(stop)
        for number, handler in earlier.items():
            signal.signal(number, handler)
