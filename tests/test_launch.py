"""The launcher starts the workers of one machine or of several, watches them, and ends them.

Each process that is started here has a mark in its environment, by which it is found and ended whatever happens.
"""

import os
import signal
import socket
import sys
import time

import pytest
from helpers import ended, free_port, machines, marked, started, until

from pydmobilenet import processes
from pydmobilenet.cli import launch, options


def lines(process, *expected):
    """Read so many lines, and see whether they are these, in any order."""
    assert sorted(process.stdout.readline().strip() for _ in expected) == sorted(expected)


# What workers run. Their lines are written at once: those of two would mix otherwise.

FIRST_FAILS = """
import os, signal, sys, time
try:
    os.mkdir(sys.argv[1])  # one of them alone can do that
except FileExistsError:
    time.sleep(600)
{}
"""
SLEEPS = r"import os, time; os.write(1, b'ready\n'); time.sleep(600)"
FAILS = "import sys; sys.exit(7)"
STOPS = r"""
import os, signal, sys, time
def stop(number, frame):
    os.write(1, b"asked\n")
    if sys.argv[1] == "does":
        sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
os.write(1, b"ready\n")
while True:
    time.sleep(600)
"""
WAITS = """
import pydmobilenet
from pydmobilenet.gluon.workers import Workers
print("ready", flush=True)
Workers("dist_sync")
"""


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("print('its own words', file=sys.stderr); sys.exit(3)", 3, "its own words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL"),
    ],
)
def test_a_worker_that_fails_ends_everything_with_its_exit_code(failure, code, words, tmp_path):
    with started("--workers", 3, "--", "-c", FIRST_FAILS.format(failure), tmp_path / "mine") as process:
        found, _, err = ended(process)
    assert found == code
    assert words in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_each_worker_once_and_is_waited_for(number, code):
    with started("--workers", 2, "--", "-c", STOPS, "does") as process:
        lines(process, "ready", "ready")
        os.killpg(process.pid, number)  # as a terminal does it: to the whole group
        found, out, err = ended(process)
    assert (found, out) == (code, "asked\nasked\n"), err
    assert err == ""


def test_a_second_signal_ends_workers_that_do_not_end_by_themselves():
    with started("--workers", 2, "--", "-c", STOPS, "does not") as process:
        lines(process, "ready", "ready")
        process.send_signal(signal.SIGTERM)
        lines(process, "asked", "asked")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 143


def test_workers_that_wait_for_those_of_another_machine_can_be_interrupted():
    with started(*machines(2, free_port())[0], "-c", WAITS) as process:
        lines(process, "ready")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 130


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_launcher_that_is_killed_takes_everything_with_it():
    with started("--workers", 2, "--", "-c", SLEEPS) as process:
        lines(process, "ready", "ready")
        assert len(marked(process.mark)) == 5
        process.kill()
        until(lambda: not marked(process.mark))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_machine_that_goes_without_a_word_ends_the_other(killed):
    first, second = machines(2, free_port())
    with started(*first, "-c", SLEEPS) as led, started(*second, "-c", SLEEPS) as joined:
        lines(led, "ready")
        lines(joined, "ready")
        (led, joined)[killed].kill()
        code, _, err = ended((joined, led)[killed])
    assert code == 1
    assert "machine" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("has failed")


def test_strangers_and_machines_of_another_job_are_not_let_in():
    port = free_port()
    first, second = machines(2, port)
    with started(*first, "-c", SLEEPS) as led:
        lines(led, "ready")
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(100) == b""
        with started(*machines(3, port)[1], "-c", SLEEPS) as other:
            code, out, err = ended(other)
        assert (code, out) == (2, "")
        assert err == (
            f"launch.py: error: 127.0.0.1:{port} refuses: --workers 3 --here 1 (allowed: --workers 2, --here to 1)\n"
        )
        with started(*second, "-c", FAILS) as joined:
            assert ended(joined)[0] == 7
        assert ended(led)[0] == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "train.py"], "the following arguments are required: --workers"),
        (["--workers", "0", "train.py"], "argument --workers: '0' (allowed: a whole number from 1)"),
        (["--workers", "2"], "nothing to run: add what a worker runs, as -- train.py --kvstore dist_sync"),
        (["--workers", "2", "--here", "3", "x.py"], "argument --here: '3' (allowed: up to --workers; nearest: 2)"),
        (["--workers", "2", "--here", "1", "x.py"], "add --root HOST:PORT"),
        (["--workers", "2", "--join", "x.py"], "add --root HOST:PORT"),
        (["--workers", "2", "--root", "here", "x.py"], "'here' (allowed: HOST:PORT, as 192.0.2.1:9000)"),
        (["--workers", "2", "--root", "here:0", "x.py"], "'here:0' (allowed: HOST:PORT, as 192.0.2.1:9000)"),
        (["--workers", "2", "--wrokers", "3", "x.py"], "unrecognized arguments: --wrokers; nearest: --workers"),
        (["--workers", "2", "--here", "1", "--root", "192.0.2.1:9", "x.py"], "cannot wait at 192.0.2.1:9 ("),
        (["--workers", "2", "--root", "no.such.host.invalid:9", "x.py"], "cannot wait at no.such.host.invalid:9 ("),
        (["--workers", "2", "--join", "--root", "no.such.host.invalid:9", "x.py"], "unknown host 'no.such.host.inv"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        options.exit_with(launch.main, "launch.py")
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "")
    assert err.startswith("launch.py: error: ")
    assert words in err
    assert len(err.splitlines()) == 1


def test_workers_share_the_processors_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(processes, "available_processors", lambda: 8)
    for given, workers, expected in (("8", 2, "4"), ("8", 3, "2"), ("8", 9, "1"), ("3", 2, "3")):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert processes.threads(workers) == expected
