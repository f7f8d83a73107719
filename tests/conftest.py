"""Fixtures for all tests: real images and checkpoints where they are here, an empty home, and a bad server."""

from __future__ import annotations

import ctypes
import gc
import gzip
import http.server
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

# Before MXNet is imported: files of tests run side by side, and threads that wait for each other are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As training has it by default, but not to be lifted by a command that only answers and is run inside this process.
os.environ.setdefault("DNNL_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "ALL")  # PyTorch's own, which is not limited

# Tests of the cache turn it on, in a directory of their own.
os.environ["PYDMOBILENET_CACHE"] = "0"

# Tests import ONNX Runtime themselves too, which reports to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A shell's background job ignores it, and hands that down to all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("helpers")

from helpers import NOWHERE, ROOT, SHARED, runner  # noqa: E402

from pydmobilenet import fetching, machine  # noqa: E402
from pydmobilenet.data import cifar, images  # noqa: E402
from pydmobilenet.gluon import runtime  # noqa: E402

NO_GLUON = runtime.obstacle()
NO_PYTORCH = "" if importlib.util.find_spec("torch") else "PyTorch is not installed"
# What is left out with an engine: files of tests that import it at their top, and tests with its marker.
IMPORTS = {
    r"^(import mxnet|from mxnet|from pydmobilenet\.gluon(?! import runtime))": NO_GLUON,
    r"^(import torch|from torch|from pydmobilenet\.pytorch)": NO_PYTORCH,
}
collect_ignore = [
    path.name
    for path in sorted((ROOT / "tests").glob("test_*.py"))
    if any(obstacle and re.search(what, path.read_text("utf-8"), re.MULTILINE) for what, obstacle in IMPORTS.items())
]


def pytest_report_header():
    obstacles = [obstacle for obstacle in (NO_GLUON, NO_PYTORCH) if obstacle]
    if obstacles:
        left_out = ", ".join(["all tests marked so", *collect_ignore])
        return f"left out, as {' and '.join(obstacles)}: {left_out}"


def pytest_collection_modifyitems(items):
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # begin with what takes long: files run side by side
    obstacles = {"gluon": NO_GLUON, "gpu": NO_GLUON, "pytorch": NO_PYTORCH}
    if NO_GLUON and NO_PYTORCH:
        obstacles["trains"] = "neither MXNet nor PyTorch is installed"
    if not NO_GLUON:
        obstacles["gpu"] = runtime.device_obstacle()
    no_gpu = "" if machine.compute_capabilities() else "NVIDIA's driver lists no GPU here"
    for item in items:
        own = {"gpu": no_gpu} if item.get_closest_marker("pytorch") else {}
        for marker, obstacle in {**obstacles, **own}.items():
            if obstacle and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=obstacle))


@pytest.fixture(autouse=True, scope="module")
def freed():
    """Free the networks and compiled code of a file of tests: a worker runs many."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def shared() -> Path:
    """The authors' checkpoints and real images, which stand beside the checkout or nowhere."""
    if not SHARED.is_dir():
        pytest.skip("the authors' weights and real images (../shared) are not here")
    return SHARED


@pytest.fixture
def weights_dir(shared) -> Path:
    return shared / "weights"


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Path:
    """A home without anything in it, and no way to the network."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYDMOBILENET_HOME", str(home / "project"))
    monkeypatch.setenv("MXNET_HOME", str(home / "mxnet"))
    monkeypatch.setenv("MXNET_GLUON_REPO", NOWHERE)
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", NOWHERE)
    monkeypatch.setattr(cifar, "TORONTO", NOWHERE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "_unreachable", {})
    monkeypatch.delitem(images.FORMATS, "HEIC", raising=False)  # what is allowed is the same, with pillow-heif or not
    return home


@pytest.fixture
def at_update(monkeypatch):
    """Something happens, once, when the learning rate of an update is asked for."""
    from pydmobilenet.training import loop

    def arrange(number, happening):
        make, pending = loop.learning_rates, [happening]

        def made(*arguments):
            rate = make(*arguments)

            def asked(update):
                if update == number and pending:
                    pending.pop()()
                return rate(update)

            return asked

        monkeypatch.setattr(loop, "learning_rates", made)

    return arrange


class Server:
    """A local HTTP server. `files` maps paths to contents; `fault` says what goes wrong, `requests` what was asked."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.fault = ""
        self.requests: list[str] = []
        self.sent = 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def answer(self, handler):
        self.requests.append(handler.path)
        content = self.files.get(handler.path)
        if self.fault == "silent":
            time.sleep(3)
            return
        if self.fault == "error page":
            content = b"<html>Not here any more</html>"
        if content is None:
            handler.send_error(404)
            return
        handler.send_response(200)
        if self.fault == "packs it":
            content = gzip.compress(content, mtime=0)
            handler.send_header("Content-Encoding", "gzip")
        if self.fault != "has no end":
            handler.send_header("Content-Length", str(len(content) + 10**9 * (self.fault == "claims more")))
        handler.end_headers()
        with suppress(OSError):  # nobody listens any more
            while self.fault == "has no end":
                handler.wfile.write(bytes(1 << 16))
                self.sent += 1 << 16
        if self.fault == "breaks off":
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.wfile.write(content)


def _running():
    server = Server()
    yield server
    server.fault = ""
    server.httpd.shutdown()
    server.httpd.server_close()


server = pytest.fixture(_running)
another_server = pytest.fixture(_running)


@pytest.fixture
def train(monkeypatch, capsys):
    """train.py inside this process, without its curves, which take longer than the training."""
    monkeypatch.setattr("pydmobilenet.training.loop.draw", lambda *_: None)
    return runner(monkeypatch, capsys)
