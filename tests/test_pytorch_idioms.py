"""What PyTorch users try with a network, of every family: tracing, hooks, transforms of functions, tools for norms."""

import copy
import io
import pickle

import numpy as np
import oracle
import pytest
import torch
from oracle import FAMILIES
from torch import nn

import pydmobilenet
from pydmobilenet.pytorch.network import set_arrays
from pydmobilenet.pytorch.pyramid import DepthwiseConv2d

pytestmark = pytest.mark.pytorch

each_family = pytest.mark.parametrize("name", FAMILIES)
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made(name, **options):
    """A network in which every parameter matters."""
    net = pydmobilenet.get_model(name, engine="pytorch", **options)
    set_arrays(net, oracle.random_arrays(net.description))
    return net


def assert_close(found, expected, tolerance=1e-5):
    assert float((found - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())


@each_family
def test_a_network_is_traced_by_fx(name):
    net = made(name)
    traced = torch.fx.symbolic_trace(net)
    assert_close(traced(X), net(X))
    assert_close(traced.train()(X), net.train()(X))


@each_family
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_a_network_is_traced_by_jit(name, gradients):
    net = made(name)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(net, X)
    assert_close(traced(X[:2]), net(X[:2]))


@each_family
def test_a_network_is_exported_under_its_names(name):
    net = made(name)
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert_close(exported.module()(X[:2]), net(X[:2]))
    assert exported.state_dict.keys() == net.state_dict().keys()


@each_family
def test_copies_answer_alike(name):
    net = made(name)
    expected = net(X)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(X), expected)
        with torch.no_grad():
            next(each for each in other.parameters() if each.requires_grad).zero_()
    assert torch.equal(net(X), expected)


@each_family
def test_hooks_see_every_layer_and_block_and_what_they_see_stays(name):
    net = made(name).train()
    seen, gradients, copies = {}, {}, {}
    for key, module in net.named_modules():

        def forward(module, inputs, output, key=key):
            seen[key], copies[key] = output, output.detach().clone()

        module.register_forward_hook(forward)
        module.register_full_backward_hook(lambda module, inputs, outputs, key=key: gradients.update({key: outputs}))
    net(X.clone().requires_grad_()).square().sum().backward()
    assert seen.keys() == gradients.keys() == dict(net.named_modules()).keys()
    assert all(torch.equal(seen[key], copies[key]) for key in seen)


@pytest.mark.parametrize("place", ["stages.1.0.spatial.conv5", "stages.1.0.spatial.conv7"])
def test_a_hook_on_one_convolution_of_add_may_change_its_map(place):
    net = made("pyd-add-11-0.25")
    expected = net(X)
    hook = net.get_submodule(place).register_forward_hook(lambda module, inputs, output: 0 * output)
    assert not torch.allclose(net(X), expected, rtol=0, atol=1e-3)
    hook.remove()
    assert torch.equal(net(X), expected)


def test_a_convolution_of_add_may_be_pruned_or_replaced():
    from torch.nn.utils import parametrize, prune

    net, other = made("pyd-add-11-0.25"), made("pyd-add-11-0.25")
    spatial = net.stages[0][0].spatial
    prune.l1_unstructured(spatial.conv5, "weight", 0.5)
    other.stages[0][0].spatial.conv5.weight.data = spatial.conv5.weight.detach().clone()
    assert_close(net(X), other(X))

    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    parametrize.register_parametrization(spatial.conv7, "weight", Halved())
    other.stages[0][0].spatial.conv7.weight.data /= 2
    assert_close(net(X), other(X))
    spatial.conv3 = nn.Identity()
    other.stages[0][0].spatial.conv3.weight.data.zero_()
    other.stages[0][0].spatial.conv3.weight.data[:, :, 1, 1] = 1
    assert_close(net(X), other(X))


@each_family
def test_tools_find_the_normalisations(name):
    net = made(name)
    norms = [layer for layer in net.description.layers if layer.operator == "BatchNorm"]
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == len(norms)
    assert torch.equal(synced(X), net(X))
    before = net(X)
    torch.optim.swa_utils.update_bn([X, X + 1], net)
    assert not torch.equal(net.eval()(X), before)
    mean = net.get_submodule(norms[0].name).running_mean
    torch.testing.assert_close(mean, X.mean((0, 2, 3)) + 0.5)


@each_family
def test_forward_mode_and_reverse_mode_have_the_same_derivative(name):
    net = made(name).double()
    x, direction = X[:2].double(), torch.randn_like(X[:2].double())
    _, forward = torch.func.jvp(net, (x,), (direction,))
    _, pull = torch.func.vjp(net, x)
    slope = torch.randn_like(forward)
    torch.testing.assert_close((forward * slope).sum(), (pull(slope)[0] * direction).sum())


@each_family
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_gradients_of_each_image_are_those_of_it_alone(name, dtype):
    net = made(name).to(dtype)
    parameters = {key: each.detach() for key, each in net.named_parameters() if each.requires_grad}

    def loss(parameters, image):
        return torch.func.functional_call(net, parameters, (image[None],)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X.to(dtype))
    alone = [torch.func.grad(loss)(parameters, image) for image in X.to(dtype)]
    for key in parameters:
        expected = torch.stack([each[key] for each in alone]).double()
        apart = float((together[key].double() - expected).norm())
        assert apart <= (1e-9 if dtype == torch.double else 0.1) * float(expected.norm()), key


def test_several_networks_are_trained_as_one():
    nets, x = [made("pyd-concat-11-0.25").double() for _ in range(2)], X.double()
    with torch.no_grad():
        for each in nets[1].parameters():
            each.mul_(1.1)
    parameters, buffers = torch.func.stack_module_state(nets)

    def loss(parameters, buffers):
        return torch.func.functional_call(nets[0], (parameters, buffers), (x,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for number, net in enumerate(nets):
        net(x).square().sum().backward()
        for key, each in net.named_parameters():
            if each.requires_grad:
                torch.testing.assert_close(found[key][number], each.grad)


@each_family
def test_gradients_have_gradients(name):
    net = made(name).double()
    x = X[:1, :, :16, :16].double().requires_grad_()
    (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(first.square().sum(), x)
    step = torch.randn_like(x)
    gradient = torch.func.grad(lambda x: net(x).square().sum())
    _, change = torch.func.jvp(lambda x: gradient(x).square().sum(), (x.detach(),), (step,))
    torch.testing.assert_close((found * step).sum(), change)


@each_family
def test_a_network_keeps_channels_last_and_makes_no_memory_on_the_meta_device(name):
    net = made(name).to(memory_format=torch.channels_last)
    maps = net.forward_features(X.contiguous(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert net.to("meta")(X.to("meta")).shape == (3, 10)


@each_family
def test_state_dicts_have_pytorch_s_names_and_take_those_of_checkpoints(name):
    net, fresh = made(name), pydmobilenet.get_model(name, engine="pytorch")
    arrays = oracle.random_arrays(net.description)
    assert sum(each.numel() for each in net.parameters()) == net.description.complexity().parameters
    nested = nn.ModuleDict({"net": nn.Sequential(fresh)})
    nested.load_state_dict({f"net.0.{key}": torch.tensor(array) for key, array in arrays.items()})
    assert torch.equal(fresh(X), net(X))
    again = pydmobilenet.get_model(name, engine="pytorch")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(X), net(X))
    with pytest.raises(RuntimeError, match="Unexpected"):
        again.load_state_dict({**net.state_dict(), "stem.other": X})


@pytest.mark.parametrize("name", ["pyd-add-11-0.25", "wrn-10-2"])
def test_a_file_of_either_kind_of_names_is_read(name, tmp_path):
    import safetensors.torch

    net = made(name)
    arrays = {key: torch.tensor(array) for key, array in oracle.random_arrays(net.description).items()}
    torch.save(net.state_dict(), tmp_path / "now.pth")
    torch.save(arrays, tmp_path / "before.pth")  # as version 0.4 wrote it
    safetensors.torch.save_file(net.state_dict(), tmp_path / "now.safetensors")
    for file in ("now.pth", "before.pth", "now.safetensors"):
        assert torch.equal(made_of(name, tmp_path / file)(X), net(X))


def made_of(name, path):
    return pydmobilenet.get_model(name, engine="pytorch", weights=path)


def test_blocks_are_called_and_indexed():
    net = made("pyd-concat-11-0.25")
    x = net.stem(X)
    for stage in net.stages:
        for block in stage:
            x = block(x)
    assert torch.equal(net.head(x), net(X))
    assert torch.equal(net.head(x, pre_logits=True), net.forward_head(x, pre_logits=True))
    assert isinstance(net.stages[2][-1].spatial.conv7, DepthwiseConv2d)


def test_an_unknown_argument_has_a_nearest_one():
    from pydmobilenet import pytorch

    with pytest.raises(TypeError, match=r"get_model has no argument 'num_classes'; nearest: classes"):
        pytorch.get_model("pyd-add-11-0.25", num_classes=3)


def test_a_whole_network_can_be_saved_by_torch():
    net, file = made("pyd-add-11-0.25"), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    np.testing.assert_array_equal(torch.load(file, weights_only=False)(X).detach(), net(X).detach())
