"""A benchmark's process: it answers each line with a line, and ends with the benchmark in any case."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress


class Server:
    """``script --serve arguments`` in its own process group; leaving the context kills the group."""

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
        os.killpg(self.process.pid, signal.SIGKILL)  # some of a DataLoader's workers never end
        self.process.communicate()

    def ask(self, question: str) -> str:
        """Return the answer to a line. Raises SystemExit if the process has ended without one."""
        answer = ""
        with suppress(BrokenPipeError):
            print(question, file=self.process.stdin, flush=True)
            # Its children may hold the pipe open beyond its end.
            while self.process.poll() is None and not answer:
                if select.select([self.process.stdout], [], [], 0.1)[0]:
                    answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{os.path.basename(sys.argv[0])}: {self.name} has failed at {question!r}: no figure")
        return answer

    def pause(self) -> None:
        """Stop the process group until `resume`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the process group."""
        os.killpg(self.process.pid, signal.SIGCONT)
