"""What precedes ``import mxnet``, and which device is chosen."""

import math
import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import mxnet as mx
import pytest
from helpers import ROOT

from pydmobilenet import machine
from pydmobilenet.errors import UnusableError
from pydmobilenet.gluon import runtime

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTHONPATH")


def run(code, **environment):
    """Run Python code in a process of its own, as after a fresh start."""
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True
    )


def test_the_threads_are_the_processors_that_may_be_used():
    answer = run("import pydmobilenet, os; print(os.environ['OMP_NUM_THREADS'])")
    assert int(answer.stdout) == machine.available_processors()


def test_affinity_is_respected():
    answer = run(
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "import pydmobilenet; print(os.environ['OMP_NUM_THREADS'])"
    )
    assert answer.stdout.strip() == "1"


def test_what_the_user_set_is_kept():
    answer = run("import pydmobilenet, os; print(os.environ['OMP_NUM_THREADS'])", OMP_NUM_THREADS="7")
    assert answer.stdout.strip() == "7"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
@pytest.mark.parametrize(
    "engine", ["import pydmobilenet", pytest.param("import pydmobilenet.pytorch", marks=pytest.mark.pytorch)]
)
def test_threads_that_wait_do_not_spin_for_long_unless_the_user_says_so(engine, given, expected):
    before = WITHOUT_MXNET if engine.endswith("pytorch") else ""
    answer = run(f"{before}{engine}, os; print(os.environ.get('GOMP_SPINCOUNT'))", **given)
    assert answer.stdout.strip() == expected, answer.stderr


def test_nothing_breaks_where_mxnet_was_imported_first():
    answer = run(
        "import numpy; numpy.bool = numpy.bool_; import mxnet, pydmobilenet\n"
        "print(pydmobilenet.get_model('pyd-add-11-0.25')(mxnet.nd.zeros((1, 3, 32, 32))).shape)"
    )
    assert answer.stdout.strip() == "(1, 10)", answer.stderr


def test_mxnet_is_not_imported_before_it_is_needed():
    answer = run("import pydmobilenet, sys; pydmobilenet.list_models(); print('mxnet' in sys.modules)")
    assert answer.stdout.strip() == "False", answer.stderr


WITHOUT_MXNET = (
    "import importlib.util as u; find = u.find_spec\n"
    "u.find_spec = lambda name, *rest: None if name == 'mxnet' else find(name, *rest)\n"
)


def test_without_mxnet_a_gluon_network_says_which_builds_there_are():
    answer = run(WITHOUT_MXNET + "import pydmobilenet; pydmobilenet.get_model('pyd-add-29-0.25', engine='gluon')")
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("pydmobilenet.errors.UnusableError: engine 'gluon': MXNet is not installed")
    assert "pydmobilenet[cpu]" in last
    assert "pydmobilenet[gpu]" in last


def test_without_mxnet_nothing_is_set_for_it():
    answer = run(
        "import os; before = dict(os.environ)\n" + WITHOUT_MXNET + "import pydmobilenet; print(os.environ == before)"
    )
    assert answer.stdout == "True\n", answer.stderr


def test_the_gpu_build_without_a_driver_says_what_to_do(monkeypatch):
    monkeypatch.setattr(runtime, "gpu_wheel", lambda: "mxnet-cu112")
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda *_, **__: (_ for _ in ()).throw(OSError("no such file")))
    assert re.search(r"mxnet-cu112.*libcuda\.so\.1.*pydmobilenet\[cpu\]", runtime.load_cuda_libraries())


def test_cuda_libraries_are_loaded_from_the_nvidia_packages_in_the_order_of_need(monkeypatch, tmp_path):
    for name in ("libcudnn.so.8", "libcudart.so.11.0"):
        (tmp_path / "some" / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / "some" / "lib" / name).write_bytes(b"")
    loaded, paths = [], []

    def load(name, **options):
        loaded.append(os.path.basename(name))
        paths.extend([name] if options else [])

    monkeypatch.setattr(runtime.ctypes, "CDLL", load)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(runtime, "gpu_wheel", lambda: "mxnet-cu112")
    assert runtime.load_cuda_libraries() == ""
    assert loaded == ["libcuda.so.1", *runtime.CUDA_LIBRARIES]
    assert paths[0] == f"{tmp_path}/some/lib/libcudart.so.11.0"
    assert paths[1] == "libnvrtc.so.11.2"  # left to the dynamic loader


def test_a_cuda_library_that_is_nowhere_is_named(monkeypatch):
    def load(name, **_):
        if name != "libcuda.so.1":
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(runtime.ctypes, "CDLL", load)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(runtime, "gpu_wheel", lambda: "mxnet-cu112")
    assert re.search(r"libcudart\.so\.11\.0.*pydmobilenet\[gpu\]", runtime.load_cuda_libraries())


@pytest.mark.parametrize(
    ("membership", "files", "processors"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"cpu.max": "400000 100000\n"}, 4),  # in a container, only the root is there
        ("4:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("4:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("0::/\n", {}, math.inf),
    ],
)
def test_the_control_groups_quota_is_respected(membership, files, processors, tmp_path):
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "membership").write_text(membership)
    assert machine.cgroup_quota(tmp_path / "cgroup", tmp_path / "membership") == processors


@pytest.fixture
def gpus(monkeypatch):
    """A GPU build of MXNet, and a driver that lists cards of the given compute capabilities."""

    def having(*capabilities):
        features = SimpleNamespace(is_enabled=lambda name: name == "CUDA")
        monkeypatch.setattr(mx.runtime, "Features", lambda: features)
        monkeypatch.setattr(machine, "compute_capabilities", lambda: list(capabilities))

    return having


@pytest.mark.parametrize("capability", [(5, 0), (7, 5), (8, 6), (8, 9)])
def test_a_gpu_that_the_wheel_has_code_for_is_taken(gpus, capability):
    gpus(capability)
    assert runtime.choose("auto").device == mx.gpu(0)
    assert runtime.choose("gpu").device == runtime.choose("cuda:0").device == mx.gpu(0)


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "9.0"), ((10, 0), "10.0"), ((3, 7), "3.7")])
def test_a_gpu_that_the_wheel_has_no_code_for_is_refused_in_one_line(gpus, capability, name):
    gpus(capability)
    with pytest.raises(UnusableError, match=f"compute capability {name}.*5.0 to 8.9") as caught:
        runtime.choose("gpu")
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=f"compute capability {name}"):
        assert runtime.choose("auto").device == mx.cpu()


def test_auto_takes_the_first_gpu_that_mxnet_can_use(gpus):
    gpus((9, 0), (8, 0))
    assert runtime.choose("auto").device == mx.gpu(1)


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus((8, 6))
    with pytest.raises(UnusableError, match=r"no GPU 1.*lists 1"):
        runtime.choose("gpu:1")


def test_the_cpu_build_takes_the_cpu_and_says_why(monkeypatch):
    monkeypatch.setattr(mx.runtime, "Features", lambda: SimpleNamespace(is_enabled=lambda _: False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime.choose("auto")[1:] == ("the CPU", "no GPU found")
    with pytest.raises(UnusableError, match=r"CPU build.*pydmobilenet\[gpu\].*nearest: cpu"):
        runtime.choose("gpu")
    monkeypatch.setattr(machine, "compute_capabilities", lambda: [(9, 0)])
    assert "CPU build" in runtime.choose("auto").reason


def test_the_drivers_list_is_read_without_running_anything(monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 2
            return 0

        def cuDeviceGet(self, gpu, number):
            gpu._obj.value = number

        def cuDeviceGetAttribute(self, value, attribute, gpu):
            value._obj.value = {75: 8, 76: 6}[attribute] + gpu.value

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: Driver())
    assert machine.compute_capabilities() == [(8, 6), (9, 7)]
