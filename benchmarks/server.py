"""A process of a benchmark that answers one line by another. Whatever happens to the benchmark, it is ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress


class Server:
    """``script --serve arguments`` as a process group of its own. A context, at whose end none of it is left."""

    def __init__(self, script: str, *arguments: str, environment: Mapping[str, str]):
        self.name = " ".join(arguments)
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # a DataLoader's workers do not always end by themselves
        self.process.communicate()

    def ask(self, question: str) -> str:
        """The answer to a line. Raises SystemExit where the process has ended without one."""
        answer = ""
        with suppress(BrokenPipeError):
            print(question, file=self.process.stdin, flush=True)
            # What it has started may hold the pipe open beyond its own end.
            while self.process.poll() is None and not answer:
                if select.select([self.process.stdout], [], [], 0.1)[0]:
                    answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{os.path.basename(sys.argv[0])}: {self.name} has failed at {question!r}: no figure")
        return answer

    def pause(self) -> None:
        """Stop it, with all that it has started, until it is resumed."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self.process.pid, signal.SIGCONT)
