"""Triton's pyramid: when it is refused, its kernels by the interpreter, and compiled for a GPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import LIMIT, ROOT, assert_mistake, runner

from pydmobilenet import engine, pytorch
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.pytorch.pyramid import Pyramid, use_triton

pytestmark = pytest.mark.pytorch

KERNELS = "pydmobilenet.pytorch.triton_pyramid"
GPU = torch.device("cuda")
TRITON = importlib.util.find_spec("triton")
needs_triton = pytest.mark.skipif(TRITON is None, reason="Triton is not installed")


def refused(net, device):
    with pytest.raises(UnusableError) as caught:
        use_triton(net, device, torch.float32)
    assert not any(module.uses_triton for module in net.modules() if isinstance(module, Pyramid))
    return str(caught.value)


def test_triton_is_refused_where_it_cannot_be_used(monkeypatch):
    words = "--pyramid triton: {}; nearest: --pyramid conv2d"
    for net in (torch.nn.Linear(2, 2), Pyramid(2, (3, 7), 1, "concat"), Pyramid(2, (3, 5, 7, 9), 1, "max")):
        assert refused(net, GPU) == words.format("the network trains no pyramid with kernels such as 3, 5, 7")
    assert refused(Pyramid(2), torch.device("cpu")) == words.format("Triton needs a GPU, not device 'cpu'")
    monkeypatch.delattr(pytorch, "triton_pyramid", raising=False)
    monkeypatch.delitem(sys.modules, KERNELS, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    why = "import of triton halted; None in sys.modules"
    assert refused(Pyramid(2), GPU) == words.format(f"Triton cannot be imported ({why}): pip install triton")


def test_a_trial_decides(monkeypatch):
    answers = ["Triton has failed: no compiler", ""]
    monkeypatch.setattr(pytorch, "triton_pyramid", SimpleNamespace(obstacle=lambda *_: answers.pop(0)), raising=False)
    assert "Triton has failed: no compiler" in refused(Pyramid(2), GPU)
    net = torch.nn.Sequential(Pyramid(2), Pyramid(2, (3,)), Pyramid(2, (3, 7), join="concat"), Pyramid(2, (3, 9)))
    use_triton(net, GPU, torch.float32)
    assert [module.uses_triton for module in net] == [True, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pyd-add-11-0.125"], "--pyramid triton: Triton needs a GPU, not device 'cpu'; nearest: --pyramid conv2d"),
        (["resnet-11-0.125"], "--pyramid triton: the network trains no pyramid"),
        (["pyd-add-29-0.25", "--pretrained", "--freeze"], "--pyramid triton: the network trains no pyramid"),
    ],
)
def test_the_command_refuses_it_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    options = ["--engine", "pytorch", "--device", "cpu", "--pyramid", "triton", "--output", tmp_path / "run"]
    assert_mistake(runner(monkeypatch, capsys)("digits", "--model", *arguments, *options), words)
    assert not (tmp_path / "run").exists()


def test_another_name_is_refused_with_the_nearest():
    with pytest.raises(
        InvalidValueError, match=r"^unknown pyramid 'trition'; nearest: triton \(allowed: conv2d, triton"
    ):
        engine.choose(purpose="training", pyramid="trition")


@needs_triton
@pytest.mark.slow
def test_the_kernels_are_right_by_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted_pyramid.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "stride"), [("maps", "bf16", 1), ("of_x", "fp32", 2), ("of_taps", "bf16", 1)]
)
def test_the_kernels_spill_no_registers_on_sm_90(name, dtype, stride, tmp_path, monkeypatch):
    """A spilled register lies on the stack."""
    tool = Path(TRITON.origin).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this build of Triton has no cuobjdump")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled(name, dtype, stride))
    answer = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    assert re.search(r"REG:\d+ STACK:(\d+)", answer)[1] == "0", answer


def compiled(name, dtype, stride):
    """Machine code of a kernel for sm_90, in the form of pyd-concat's second stage."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pydmobilenet.pytorch import triton_pyramid as kernels

    kernel = getattr(kernels, f"_{name}_kernel")
    pixels = kernels.PIXELS_OF_TAPS if name == "of_taps" else kernels.PIXELS
    sizes = {"C": 24, "K": 7, "MAPS": 3, "S": stride, "P": pixels, "B": kernels.CHANNELS, "COLUMNS": 8}
    types = dict.fromkeys(("x", "maps", "gradient", "of_x"), f"*{dtype}") | dict.fromkeys(("taps", "sums"), "*fp32")
    signature = {key: "constexpr" if key in sizes else types.get(key, "i32") for key in kernel.arg_names}
    constants = {key: sizes[key] for key in kernel.arg_names if key in sizes}
    aligned = {(place,): [["tt.divisibility", 16]] for place, key in enumerate(kernel.arg_names) if key in types}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": 4, "enable_fp_fusion": True}).asm["cubin"]


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_computes_the_same(dtype):
    from pydmobilenet.pytorch import triton_pyramid

    assert triton_pyramid.obstacle(GPU, dtype) == ""


@needs_triton
@pytest.mark.gpu
def test_a_graph_repeats_the_kernels():
    net = Pyramid(24, (3, 5, 7), 2, "concat").to(GPU)
    use_triton(net, GPU, torch.float32)
    x = torch.randn(4, 24, 9, 12, device=GPU)

    def step():
        net.zero_grad(set_to_none=False)
        net(x).square().sum().backward()
        return net.conv5.weight.grad

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = step()
    x.normal_()
    graph.replay()
    found = gradient.clone()
    assert torch.equal(found, step())
