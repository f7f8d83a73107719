"""Start the workers of one training run, on this machine or on several, and MXNet's parameter server for them.

Two workers on this machine:

    python -m pydmobilenet.cli.launch --workers 2 -- train.py --kvstore dist_sync --model resnet-29-0.5

Two on each of two machines, of which the first one's address is 192.0.2.1: on that one

    python -m pydmobilenet.cli.launch --workers 4 --here 2 --root 192.0.2.1:9000 -- train.py --kvstore dist_sync …

and on the second one the same with ``--join`` before the ``--``. One worker is enough for all the GPUs of a machine:
``--device gpu:0,1``.

MXNet's processes wait for ever for one that is gone. So the launchers watch them, and each other over a connection to
HOST:PORT: whatever fails on any machine ends everything on all of them.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ..errors import InvalidValueError, UnusableError
from ..processes import die_with, threads
from . import options

EPILOG = """The first machine also runs MXNet's scheduler and its server. The machines need to reach each other on all
ports, and --resume the same run directory on all of them. Exit code: that of the first worker that fails; 130 or 143
interrupted, once the run is saved (a second signal ends it at once); 2 a mistake in the command."""

SERVE = ("-c", "import pydmobilenet, mxnet")  # in a scheduler and in a server, MXNet's import goes on to the very end
STOPPED = (130, 143)  # exit codes of workers that were asked to end, and did so in good order
SAVING = 60.0  # seconds for the others to end by themselves once one has done so: the first worker may still be saving
LAST_WORDS = 1.0  # the same once one has failed
PERIOD = 0.05  # seconds between two looks at them all


def parse_arguments() -> argparse.Namespace:
    parser = options.Parser(
        prog="python -m pydmobilenet.cli.launch",
        usage="%(prog)s --workers N [--here N --root HOST:PORT [--join]] -- SCRIPT [ARGUMENT ...]",
        description="Start the workers of one training run, on this machine or on several.",
        epilog=EPILOG,
    )
    option = parser.add_argument
    option("--workers", type=options.positive, metavar="N", required=True, help="workers on all machines together")
    option("--here", type=options.positive, metavar="N", help="workers on this machine (default: all)")
    option("--root", type=address, metavar="HOST:PORT", help="where the first machine waits for the others")
    option("--join", action="store_true", help="this is one of the others")
    option("command", nargs=argparse.REMAINDER, metavar="SCRIPT", help="what a worker runs, as train.py")
    arguments = parser.parse_args()
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    arguments.here = arguments.here or arguments.workers
    if not arguments.command:
        parser.error("nothing to run: add what a worker runs, as -- train.py --kvstore dist_sync")
    if arguments.here > arguments.workers:
        parser.error(f"argument --here: '{arguments.here}' (allowed: up to --workers; nearest: {arguments.workers})")
    if arguments.root is None and (arguments.join or arguments.here < arguments.workers):
        parser.error("several machines meet at the first one's address: add --root HOST:PORT")
    return arguments


def address(text: str) -> tuple[str, int]:
    """An argument that is HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: HOST:PORT, as 192.0.2.1:9000)")
    return host, int(port)


def main() -> int:
    arguments = parse_arguments()
    with Job(arguments.workers, arguments.here) as job:
        if arguments.join:
            job.join(*arguments.root)
        else:
            job.lead(*(arguments.root or ("127.0.0.1", 0)))
        return job.work(arguments.command)


class Job:
    """All that takes part in a run: the processes of this machine, `here` of the `workers` among them, and the other
    machines. At the end of its context no process is left, and the machines have been told how it went.
    """

    def __init__(self, workers: int, here: int):
        self.workers, self.here, self.absent = workers, here, workers - here
        self.environment: dict[str, str] = {}
        self.listener: socket.socket | None = None
        self.members: dict[str, subprocess.Popen | Machine] = {}  # whoever fails, fails for all
        self.awaited: list[subprocess.Popen | Machine] = []  # whose end is the end of the run
        self.code = 1

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self.listener:
            self.listener.close()
        for member in self.members.values():
            if isinstance(member, Machine):
                member.tell(self.code)
            elif member.poll() is None:
                os.killpg(member.pid, signal.SIGKILL)
                member.wait()

    def lead(self, host: str, port: int) -> None:
        """Start what is on the first machine alone. Raises UnusableError where the others cannot come to HOST:PORT."""
        try:
            own = socket.gethostbyname(host)
            if self.absent:
                self.listener = socket.create_server((own, port))
                self.listener.setblocking(False)
                say(f"waiting at {own}:{port} for {self.absent} more worker(s)")
            with socket.create_server((own, 0)) as free:
                port = free.getsockname()[1]
        except OSError as error:
            raise UnusableError(
                f"cannot wait at {host}:{port} ({error.strerror}): --root has to be an address of the first machine, "
                "and the others need --join"
            ) from None
        self._describe(own, port, own)
        self._start("scheduler", "the scheduler", SERVE)
        self._start("server", "the server", SERVE)

    def join(self, host: str, port: int) -> None:
        """Take part in the run of the first machine, once it is there. Raises InvalidValueError where that has no place
        for this one.
        """
        connection = connected(host, port)
        connection.sendall(f"{self.workers} {self.here}\n".encode())
        answer = connection.recv(200).decode(errors="replace").strip()
        if not answer.isdecimal():
            raise InvalidValueError(f"{host}:{port} refuses: {answer or 'no launcher answers there'}")
        self._describe(connection.getpeername()[0], int(answer), connection.getsockname()[0])
        self.members["the first machine"] = Machine(connection)

    def work(self, command: Sequence[str]) -> int:
        """Run this machine's workers until all workers on all machines have ended, or one has failed: the exit code.

        The first SIGINT or SIGTERM is passed on to the workers, a second one ends everything at once.
        """
        workers = [self._start("worker", f"worker {number + 1}", command) for number in range(self.here)]
        self.awaited += workers
        code, deadline, passed_on = 0, math.inf, False
        with noted_signals() as signals:
            while True:
                self._admit()
                ended = all(member.poll() is not None for member in self.awaited)
                failure = self._failure() if code in (0, *STOPPED) else code
                if failure != code:
                    code, deadline = failure, time.monotonic() + (SAVING if failure in STOPPED else LAST_WORDS)
                if ended or time.monotonic() > deadline or len(signals) > 1:
                    break
                if signals and not passed_on:
                    passed_on = True
                    for worker in workers:
                        worker.send_signal(signals[0])
                time.sleep(PERIOD)
        if not ended and not code:
            code = -signals[0]
        self.code = code if code >= 0 else 128 - code  # as a shell has it
        return self.code

    def _describe(self, host: str, port: int, own: str) -> None:
        """Settle where the scheduler listens, and the address of this machine."""
        self.environment = {
            "DMLC_PS_ROOT_URI": host,
            "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NUM_SERVER": "1",
            "DMLC_NUM_WORKER": str(self.workers),
            "DMLC_NODE_HOST": own,  # MXNet would take the first interface, which need not lead to the other machines
            "OMP_NUM_THREADS": threads(self.here),
        }

    def _start(self, role: str, name: str, command: Sequence[str]) -> subprocess.Popen:
        launcher = os.getpid()
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **self.environment, "DMLC_ROLE": role},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that a terminal's Ctrl-C reaches a worker once: through the launcher
            preexec_fn=lambda: die_with(launcher),
        )
        self.members[name] = process
        return process

    def _admit(self) -> None:
        """Let another machine take part, if one has come."""
        if self.listener is None:
            return
        try:
            connection, (host, port) = self.listener.accept()
        except BlockingIOError:
            return
        try:
            connection.settimeout(1.0)
            workers, here = map(int, connection.recv(200).split())
            fits = workers == self.workers and 0 < here <= self.absent
            allowed = f"--workers {workers} --here {here} (allowed: --workers {self.workers}, --here to {self.absent})"
            connection.sendall((self.environment["DMLC_PS_ROOT_PORT"] if fits else allowed).encode())
        except (OSError, ValueError):  # none of ours: anything in the network may come here
            fits = False
        if not fits:
            connection.close()
            return
        self.absent -= here
        say(f"{here} worker(s) at {host}, {self.absent} more to come")
        machine = self.members[f"the machine {host}:{port}"] = Machine(connection)
        self.awaited.append(machine)

    def _failure(self) -> int:
        """The exit code of a member that has failed, or of one that was stopped, or 0."""
        codes = {name: code for name, member in self.members.items() if (code := member.poll())}
        for name, code in codes.items():
            if code not in STOPPED:
                if code < 0:
                    say(f"{name} was killed by {signal.Signals(-code).name}")
                elif not name.startswith("worker"):  # a worker has said so itself
                    say(f"{name} has failed")
                return code
        return next(iter(codes.values()), 0)


class Machine:
    """The launcher of another machine, at the other end of a connection. Its last word is its exit code."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.code: int | None = None
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # so that a machine without power is missed in a minute, and not in two hours
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def poll(self) -> int | None:
        """The exit code, or None as long as there is none, as of a process; 1 if it went without a word."""
        if self.code is None:
            try:
                word = self.connection.recv(16)
            except BlockingIOError:
                return None
            except OSError:
                word = b""
            self.code = int(word) if word.isdigit() else 1
        return self.code

    def tell(self, code: int) -> None:
        """Tell it the exit code of this launcher."""
        with suppress(OSError):
            self.connection.sendall(str(code).encode())
        self.connection.close()


def connected(host: str, port: int) -> socket.socket:
    """A connection to the first machine, as soon as that is there. Raises UnusableError for an unknown host."""
    waiting = False
    while True:
        try:
            return socket.create_connection((host, port), timeout=10.0)
        except socket.gaierror as error:
            raise UnusableError(f"unknown host {host!r}: {error.strerror}") from None
        except OSError as error:
            if not waiting:
                say(f"waiting for the first machine at {host}:{port} ({error.strerror or error})")
            waiting = True
            time.sleep(1.0)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The numbers of SIGINT and SIGTERM as they come, which do nothing else."""
    numbers: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    earlier = {kind: signal.signal(kind, lambda number, _: numbers.append(number)) for kind in kinds}
    try:
        yield numbers
    finally:
        for kind, handler in earlier.items():
            signal.signal(kind, handler)


def say(text: str) -> None:
    print(f"launch.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    options.exit_with(main, "launch.py")
