"""Which instruction set oneDNN uses, by the processor's flags and the user's setting; what a result tells of itself."""

import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT
from run import levels

from pydmobilenet import machine, provenance
from pydmobilenet.data import Dataset, get_task
from pydmobilenet.gluon import runtime

SSE41 = {"sse4_1", "sse4_2"}
AVX2 = SSE41 | {"avx", "avx2", "fma"}
SKYLAKE_X = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
ZEN4 = SKYLAKE_X | {"avx512_vnni", "avx512_bf16"}


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        (ZEN4, None, "AVX512"),
        (ZEN4, "ALL", "AVX512"),
        (ZEN4, "AVX512_CORE", "AVX512"),
        (ZEN4, "AVX2", "AVX2"),
        (ZEN4, "AVX2_VNNI", "AVX2"),
        (ZEN4, "SSE41", "SSE41"),
        (SKYLAKE_X, "AVX512_CORE_AMX", "AVX512"),
        (AVX2, "ALL", "AVX2"),
        (SSE41 | {"avx"}, "AVX2", "AVX"),
        (SSE41, "AVX2", "SSE41"),
        (set(), "AVX2", ""),  # no x86, or nobody tells
        (ZEN4, "AVX3", "AVX512"),  # which oneDNN passes over
    ],
)
def test_the_highest_instruction_set_up_to_the_limit_is_used(flags, limit, expected):
    assert machine.instruction_set(flags, {machine.VARIABLE: limit} if limit else {}) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(ZEN4, ["ALL", "AVX2", "SSE41"]), (AVX2, ["ALL", "SSE41"]), (SSE41, ["ALL"]), (set(), ["ALL"])],
)
def test_run_the_tests_at_each_level(flags, expected):
    assert levels(flags) == expected


def test_read_flags_and_name_on_linux(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: fpu sse4_1 avx\n\nprocessor\t: 1\nflags\t: x\n"
    )
    assert machine.cpu_flags(path) == {"fpu", "sse4_1", "avx"}
    assert machine.cpu_name(path) == "Some: CPU"
    assert machine.cpu_flags(tmp_path / "nothing") == frozenset()
    assert machine.cpu_name(tmp_path / "nothing")


CONVOLUTION = """
images, weight = mx.nd.ones((1, 3, 8, 8)), mx.nd.ones((4, 3, 3, 3))
mx.nd.Convolution(images, weight, kernel=(3, 3), num_filter=4, no_bias=True).asnumpy()
"""
LIMITED = f"import pydmobilenet, mxnet as mx{CONVOLUTION}"
FULL = f"import pydmobilenet.gluon.runtime as r; r.use_all_instructions(); import mxnet as mx{CONVOLUTION}"
MXNET_FIRST = f"import numpy; numpy.bool = bool; import mxnet as mx, pydmobilenet{CONVOLUTION}"


def used(code, setting=None):
    """What oneDNN itself says that it uses, in a fresh process; "" where it computes nothing here."""
    environment = {name: value for name, value in os.environ.items() if name != machine.VARIABLE}
    if setting:
        environment[machine.VARIABLE] = setting
    environment["DNNL_VERBOSE"] = "1"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found = re.search(r"info,cpu,isa:Intel (.*)", answer.stdout)
    return found[1] if found else ""


@pytest.mark.slow
@pytest.mark.gluon
@pytest.mark.skipif("avx2" not in machine.cpu_flags(), reason="this processor has no AVX2")
@pytest.mark.parametrize(
    ("code", "setting", "limited"),
    [
        (LIMITED, None, True),
        (MXNET_FIRST, None, True),  # oneDNN reads it later
        (LIMITED, "avx2", True),  # which it would not understand
        (LIMITED, "ALL", False),
        (FULL, None, False),
        (FULL, "AVX2", True),  # what the user has set stays
    ],
    ids=["default", "mxnet first", "small letters", "lifted", "answering", "answering, as set"],
)
def test_limit_onednn_to_avx2_while_training(code, setting, limited):
    full = any(name.startswith("avx512") for name in machine.cpu_flags())
    assert used(code, setting).startswith("AVX-512" if full and not limited else "AVX2")


@pytest.mark.gluon
def test_warn_of_an_unknown_onednn_setting(monkeypatch):
    monkeypatch.setenv(machine.VARIABLE, "AVX3")
    with pytest.warns(UserWarning, match=r"oneDNN ignores DNNL_MAX_CPU_ISA='AVX3'; nearest: AVX"):
        runtime.choose("cpu")


def test_hash_pixels_and_labels(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5000, 3, 32, 32), np.uint8), rng.integers(0, 10, 5000)
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    task = get_task("cifar10")

    def told(images, labels):
        return provenance.of_data(Dataset(task, "train", images, labels, False, "here"))

    found = told(images, labels)
    assert found == told(mapped, labels)
    assert told(images[7:], labels[7:]) == told(mapped[7:], labels[7:])
    assert found["images_per_class"] == np.bincount(labels).tolist()
    expected = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes())
    assert found["sha256"] == expected.hexdigest()
    assert told(images, labels[::-1])["sha256"] != found["sha256"]


@pytest.mark.gluon
def test_the_environment_of_a_result_is_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = provenance.environment()
    assert found["threads"] == "3"
    assert found["python"] == sys.version.split()[0]
    assert found["mxnet"].startswith("1.9")
    assert found["instruction_set"] == machine.instruction_set()
    assert all(found[name] for name in ("pydmobilenet", "numpy", "processor"))
    assert provenance.summary() == f"{found['processor']}, {found['instruction_set']}, OMP_NUM_THREADS=3"
