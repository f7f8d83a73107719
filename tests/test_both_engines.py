"""MXNet and PyTorch in one process: two OpenMP runtimes and two copies of oneDNN, each with instructions of its own."""

import functools
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

from pydmobilenet import machine

# Looked for, not imported: GluonCV, which other tests import, does not bear PyTorch beside it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.gluon,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"),
]
needs_avx512 = pytest.mark.skipif(
    not machine.instruction_set(environment={}).startswith("AVX512"), reason="the processor has no AVX-512"
)

ORDERS = ["import torch, pydmobilenet, mxnet", "import pydmobilenet, mxnet, torch"]
BOTH = """
import numpy as np

def by_mxnet(x, w, groups):
    x, w = mxnet.nd.array(x), mxnet.nd.array(w)
    x.attach_grad()
    w.attach_grad()
    with mxnet.autograd.record():
        y = mxnet.nd.Convolution(x, w, kernel=(3, 3), pad=(1, 1), num_filter=64, num_group=groups, no_bias=True)
        (y * y).backward()
    return [each.asnumpy() for each in (y, x.grad, w.grad)]

def by_torch(x, w, groups):
    x, w = (torch.from_numpy(each).requires_grad_() for each in (x, w))
    y = torch.nn.functional.conv2d(x, w, padding=1, groups=groups)
    (y * y).sum().backward()
    return [each.detach().numpy() for each in (y, x.grad, w.grad)]

rng = np.random.default_rng(0)
for groups in (1, 64, 1):
    x = rng.normal(size=(8, 64, 16, 16)).astype(np.float32)
    w = rng.normal(size=(64, 64 // groups, 3, 3)).astype(np.float32)
    for found, expected in zip(by_mxnet(x, w, groups), by_torch(x, w, groups)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())
"""


@functools.lru_cache
def run(order, **settings):
    """Standard output of a fresh process that computes by both, with the instruction sets that oneDNN tells of."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_MAX_CPU_ISA")}
    verbose = {"DNNL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    environment = {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **verbose, **settings}
    answer = subprocess.run([sys.executable, "-c", order + BOTH], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def instruction_sets(output):
    """What MXNet's oneDNN and PyTorch's say that they use."""
    return [re.search(f"^{name}_verbose,.*cpu,isa:(.*)", output, re.MULTILINE)[1] for name in ("dnnl", "onednn")]


@pytest.mark.parametrize("order", ORDERS)
def test_both_compute_the_same_in_one_process(order):
    run(order)


@needs_avx512
@pytest.mark.parametrize("order", ORDERS)
def test_the_limit_of_mxnet_is_none_of_pytorch(order):
    mxnet, torch = instruction_sets(run(order))
    assert mxnet == "Intel AVX2"
    assert torch.startswith("Intel AVX-512")


@needs_avx512
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"DNNL_MAX_CPU_ISA": "AVX"}, ["Intel AVX", "Intel AVX"]),
        ({"ONEDNN_MAX_CPU_ISA": "AVX"}, ["Intel AVX2", "Intel AVX"]),
    ],
)
def test_what_the_user_has_set_stays(settings, expected):
    assert instruction_sets(run(ORDERS[0], **settings)) == expected
