"""The signals that end training after the current update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..processes import launched

URGENT = (signal.SIGINT, signal.SIGTERM)
# Of a terminal that was closed, and of Slurm before its time is up; Windows has neither.
POLITE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
SIGNALS = (*URGENT, *POLITE)


@contextmanager
def handled(stop: Callable[[int], None]) -> Iterator[None]:
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
