"""A benchmark that fails leaves nothing behind."""

import os
import sys
import time

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from server import Server

ANSWERS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as a DataLoader's workers do
for line in sys.stdin:
    if line == "fail\\n":
        raise SystemExit(1)
    print(sys.argv[2], line.strip(), child.pid, flush=True)
"""


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # what nobody has asked for yet is over too
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are listed in /proc on Linux alone")
@pytest.mark.parametrize("paused", [False, True])
def test_a_failing_benchmark_ends_all_that_it_has_started(paused, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ANSWERS)
    servers = [Server(str(script), name, environment=os.environ) for name in ("one", "other")]
    pids = [server.process.pid for server in servers]
    with servers[0] as one, servers[1] as other:
        for server in servers:
            word, question, child = server.ask("7").split()
            assert (word, question) == (server.name, "7")
            pids.append(int(child))
        assert all(map(running, pids))
        if paused:
            one.pause()
        with pytest.raises(SystemExit, match="other has failed at 'fail'"):
            other.ask("fail")
    deadline = time.monotonic() + 60
    while any(map(running, pids)):  # a process that was killed takes its time
        assert time.monotonic() < deadline
        time.sleep(0.01)
