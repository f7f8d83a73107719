"""Triton's pyramid by its interpreter, on a CPU: run by test_triton_pyramid.py in a process with TRITON_INTERPRET=1."""

import pytest
import torch
from test_pytorch_trainer import made, train
from torch.nn import functional as F

from pydmobilenet.pytorch import pyramid, triton_pyramid
from pydmobilenet.pytorch.pyramid import Pyramid

SIZES, SHAPE = (3, 5, 7), (2, 5, 9, 12)
ACCURACY = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7}  # the interpreter rounds bfloat16 down


@pytest.fixture(autouse=True)
def large_programs(monkeypatch):
    """Few programs: the interpreter takes them one after the other."""
    monkeypatch.setattr(triton_pyramid, "PIXELS", 512)
    monkeypatch.setattr(triton_pyramid, "PIXELS_OF_TAPS", 256)


def draw(dtype=torch.float32, sizes=SIZES, shape=SHAPE):
    """Images and kernels; these are not below float32, as in training."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weights = [torch.randn(shape[1], 1, size, size, generator=generator) for size in sizes]
    return x, *(weight.to(torch.promote_types(dtype, torch.float32)) for weight in weights)


def by_conv2d(x, weights, stride):
    return torch.cat([F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=len(w)) for w in weights], 1)


def with_gradients(function, tensors, stride):
    """The maps and all gradients of a weighted sum of theirs; the weights can be represented in any type."""
    x, *weights = inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    maps = function(x, weights, stride)
    factors = torch.arange(maps.numel()).reshape(maps.shape) % 7 - 3.0
    return maps.detach(), *torch.autograd.grad(maps, inputs, factors.to(maps.dtype))


def assert_right(tensors, stride):
    found = with_gradients(triton_pyramid.convolve, tensors, stride)
    expected = with_gradients(by_conv2d, [tensor.double() for tensor in tensors], stride)
    for ours, theirs in zip(found, expected):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= ACCURACY[tensors[0].dtype], ours.shape
    return found


@pytest.mark.parametrize(("dtype", "stride"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_maps_and_gradients_are_those_of_conv2d(dtype, stride):
    x, *weights = draw(dtype)
    maps, of_x, *_ = assert_right([x.contiguous(memory_format=torch.channels_last), *weights], stride)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert of_x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("sizes", "shape", "stride"),
    [((3,), (2, 33, 5, 4), 1), ((3,), (3, 1, 2, 3), 2), ((3, 5), (2, 4, 1, 1), 2)],
)
def test_other_sizes_and_shapes(sizes, shape, stride):
    assert_right(draw(sizes=sizes, shape=shape), stride)


def test_several_programs_give_the_same_bits_each_time(monkeypatch):
    for name, value in {"PIXELS": 8, "PIXELS_OF_TAPS": 4, "PARTIAL_SUMS": 2, "CHANNELS": 2}.items():
        monkeypatch.setattr(triton_pyramid, name, value)
    tensors = draw(sizes=(3,), shape=(1, 3, 3, 4))
    first, second = assert_right(tensors, 1), with_gradients(triton_pyramid.convolve, tensors, 1)
    assert all(map(torch.equal, first, second))


def test_no_image_has_no_maps_and_gradients_of_zero():
    maps, of_x, *of_weights = with_gradients(triton_pyramid.convolve, draw(shape=(0, 2, 4, 4)), 1)
    assert (maps.shape, of_x.shape) == ((0, 6, 4, 4), (0, 2, 4, 4))
    assert not any(map(torch.any, of_weights))


def test_the_gradients_are_those_of_finite_differences():
    tensors = [tensor.requires_grad_() for tensor in draw(torch.float64, (1, 3), (1, 1, 2, 3))]
    assert torch.autograd.gradcheck(lambda x, *w: triton_pyramid.convolve(x, w, 2), tensors, fast_mode=True)


def test_the_operators_can_be_traced_and_compiled():
    x, *weights = draw(sizes=(3,), shape=(1, 2, 3, 4))
    taps = weights[0].flatten(1).t()
    inputs = x.requires_grad_(), taps.detach().requires_grad_(), 3, 1, 2
    tests = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(triton_pyramid._maps_op, inputs, test_utils=tests)
    net = Pyramid(2, (1, 3), 1, "concat")
    net.uses_triton = True
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (net, compiled):
        net.zero_grad()
        function(x).square().sum().backward()
        gradients.append(net.conv3.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("join", ["add", "concat", "max"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_pyramid_is_the_same_by_both(join, dtype, monkeypatch):
    net, calls = Pyramid(5, (1, 3), 2, join), []
    convolve = triton_pyramid.convolve
    monkeypatch.setattr(triton_pyramid, "convolve", lambda *inputs: calls.append(len(inputs[1])) or convolve(*inputs))
    x, *_ = draw(shape=(2, 5, 5, 4))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected = net(x)
        net.uses_triton = True
        found = net(x)
    assert calls == [1 if join == "add" else 2]
    assert found.dtype == expected.dtype
    accuracy = ACCURACY[found.dtype] * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * accuracy)


def test_what_the_kernels_do_not_fit_is_left_to_conv2d(monkeypatch):
    monkeypatch.setattr(triton_pyramid, "convolve", None)  # not to be called
    net = Pyramid(112, SIZES, 1, "concat").to("meta")
    net.uses_triton = True
    assert net(torch.empty(128, 112, 224, 224, device="meta")).shape == (128, 336, 224, 224)
    monkeypatch.setattr(triton_pyramid, "INTERPRETED", False)
    on_cpu = Pyramid(5, SIZES, 1, "concat")
    on_cpu.uses_triton = True
    assert on_cpu(draw()[0]).shape == (2, 15, 9, 12)


def test_a_step_of_training_is_the_same_by_both(monkeypatch):
    monkeypatch.setattr(triton_pyramid, "PIXELS", 2048)
    monkeypatch.setattr(triton_pyramid, "PIXELS_OF_TAPS", 2048)
    trainers = [made("mobilenet-11-0.25", batch_size=2) for _ in range(2)]
    for module in trainers[1].net.modules():
        module.uses_triton = True
    (expected,), (found,) = (train(trainer, 0, size=2) for trainer in trainers)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for name, parameter in trainers[0].net.named_parameters():
        ours = trainers[1].net.get_parameter(name)
        torch.testing.assert_close(ours, parameter, rtol=0, atol=1e-5)


def test_a_trial_sees_what_is_wrong(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(triton_pyramid, "convolve", lambda x, weights: by_conv2d(x, weights, 1))
    assert triton_pyramid.obstacle(device, torch.float32) == ""
    monkeypatch.setattr(triton_pyramid, "convolve", lambda x, weights: by_conv2d(x, weights, 1) * 1.001)
    assert triton_pyramid.obstacle(device, torch.float32) == "Triton's results are wrong here"
    monkeypatch.setattr(triton_pyramid, "convolve", None)
    assert triton_pyramid.obstacle(device, torch.float32) == "Triton has failed: 'NoneType' object is not callable"
    with pytest.raises(OSError, match=r"^--pyramid triton: Triton has failed: .*; nearest: --pyramid conv2d$"):
        pyramid.use_triton(Pyramid(2), torch.device("cuda"), torch.float32)
