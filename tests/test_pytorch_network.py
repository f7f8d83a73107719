"""PyTorch's modules: names and shapes of their parameters, the function that they are, how they are made and kept."""

import copy
import sys

import numpy as np
import oracle
import pytest
import torch
from helpers import SHARED, first_images
from oracle import FAMILIES

import pydmobilenet
from pydmobilenet import catalog, engine, pytorch, zoo
from pydmobilenet.data import get_task, normalise
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.network import MOVING_STATISTICS, BatchNorm
from pydmobilenet.pytorch.network import INITIALISERS, build, get_arrays, initialize, set_arrays

pytestmark = pytest.mark.pytorch

RECORDS = catalog.RECORDS
CHECKPOINTS = [
    record
    for record in RECORDS
    if record.checkpoint and (SHARED / "weights" / record.checkpoint.path.split("/", 1)[1]).exists()
]
DESCRIBED = [*((name, "cifar10") for name in FAMILIES), ("pyd-concat-11-0.25", "imagenet32")]
MODEL = "pyd-concat-11-0.25"


def name_of(record):
    return f"{record.model}@{record.dataset}"


def images(number=3, size=32):
    return np.random.default_rng(0).standard_normal((number, 3, size, size)).astype(np.float32)


def logits(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x)).float().numpy()


def made(name, dataset="cifar10"):
    """A network in which every parameter matters, and its parameters."""
    net = pytorch.get_model(name, dataset)
    arrays = oracle.random_arrays(net.description)
    set_arrays(net, arrays)
    return net, arrays


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_the_state_dict_is_what_is_described_and_has_as_many_numbers_as_the_catalog_says(record):
    description = zoo.describe(record.model, record.dataset)
    with torch.device("meta"):  # which has shapes and no numbers
        net = build(catalog.parse_name(record.model), description.head.out_features, zoo.widths(record.dataset))
    assert net.description == description
    assert {name: tuple(each.shape) for name, each in net.state_dict().items()} == description.parameters
    counted = [each.numel() for name, each in net.state_dict().items() if not name.endswith(MOVING_STATISTICS)]
    fixed = 2 * 3  # the stem's scale and shift
    assert sum(each.numel() for each in net.parameters()) == sum(counted) - fixed
    if record.exact:
        assert sum(counted) == record.exact.parameters
    else:
        assert sum(counted) / 1e6 == pytest.approx(record.params_m, abs=record.params_tolerance_m)


@pytest.mark.parametrize(("name", "dataset"), DESCRIBED)
def test_a_network_is_the_function_that_is_described(name, dataset):
    net, arrays = made(name, dataset)
    assert not net.training
    expected = oracle.outputs(net.description, arrays, images())
    *_, pool, dense = net.description.layers
    np.testing.assert_allclose(
        logits(net, images()), expected[dense.name], rtol=0, atol=1e-5 * np.ptp(expected[dense.name])
    )
    with torch.no_grad():
        pooled = net.forward_head(net.forward_features(torch.from_numpy(images())), pre_logits=True).numpy()
    np.testing.assert_allclose(pooled, expected[pool.name], rtol=0, atol=1e-5 * np.ptp(expected[pool.name]))


@pytest.mark.parametrize(("name", "dataset"), DESCRIBED)
def test_in_training_it_normalises_by_the_batch_and_the_moving_statistics_follow(name, dataset):
    net, arrays = made(name, dataset)
    values = oracle.outputs(net.description, arrays, images(4), training=True)
    expected = values[net.description.head.name]
    np.testing.assert_allclose(logits(net.train(), images(4)), expected, rtol=0, atol=2e-5 * np.ptp(expected))
    found = get_arrays(net)
    for layer in net.description.layers:
        if isinstance(layer, BatchNorm):
            x = values[layer.inputs[0]]
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3), ddof=1)  # the unbiased one
            for statistic, new in (("running_mean", mean), ("running_var", variance)):
                key = f"{layer.name}.{statistic}"
                np.testing.assert_allclose(found[key], 0.9 * arrays[key] + 0.1 * new, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.gluon
@pytest.mark.parametrize("record", CHECKPOINTS, ids=name_of)
def test_with_the_authors_weights_the_logits_are_gluon_s(record, weights_dir):
    import mxnet as mx

    x = normalise(first_images()[:8], get_task(record.dataset))
    theirs, ours = (
        pydmobilenet.get_model(record.model, record.dataset, pretrained=True, weights_dir=weights_dir, engine=each)
        for each in ("gluon", "pytorch")
    )
    theirs.hybridize()
    expected, found = theirs(mx.nd.array(x)).asnumpy(), logits(ours, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.ptp(expected))
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_with_another_number_of_classes_the_authors_weights_get_a_fresh_head(weights_dir):
    options = {"pretrained": True, "weights_dir": weights_dir}
    theirs = pytorch.get_model("resnet-29-0.5", **options).state_dict()
    net = pytorch.get_model("resnet-29-0.5", classes=37, **options)
    own = net.state_dict()
    assert {name for name in own if not torch.equal(own[name], theirs[name])} == {
        "head.dense.weight",
        "head.dense.bias",
    }
    assert own["head.dense.weight"].shape == (37, 128)
    assert own["head.dense.weight"].std() > 0.01
    assert not own["head.dense.bias"].any()
    assert logits(net, images(1, 64)).shape == (1, 37)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_may_be_larger(name):
    net, arrays = made(name)
    x = images(2, 64)
    expected = oracle.logits(net.description, arrays, x)
    np.testing.assert_allclose(logits(net, x), expected, rtol=0, atol=1e-5 * np.ptp(expected))


# The choice of the engine


@pytest.mark.parametrize("name", FAMILIES)
def test_an_engine_s_name_gives_its_network(name):
    net = pydmobilenet.get_model(name, engine="pytorch", device="cpu")
    assert isinstance(net, torch.nn.Module)
    assert not net.training


@pytest.mark.gluon
def test_auto_is_gluon_where_mxnet_is():
    from mxnet.gluon import HybridBlock

    assert isinstance(pydmobilenet.get_model(MODEL), HybridBlock)


def test_auto_is_pytorch_where_mxnet_is_not(monkeypatch):
    monkeypatch.setattr(engine.runtime, "obstacle", lambda: "MXNet is not installed")
    assert isinstance(pydmobilenet.get_model(MODEL), torch.nn.Module)


@pytest.mark.parametrize(
    ("name", "nearest"), [("torch", "pytorch"), ("pytorhc", "pytorch"), ("gluno", "gluon"), ("onnxruntime", "auto")]
)
def test_an_unknown_engine_is_named(name, nearest):
    with pytest.raises(InvalidValueError, match=f"^unknown engine of networks '{name}'.*{nearest}") as caught:
        pydmobilenet.get_model(MODEL, engine=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["auto", "pytorch"])
def test_an_engine_that_is_not_here_is_named_with_what_installs_it(name, monkeypatch):
    monkeypatch.setattr(engine.runtime, "obstacle", lambda: "MXNet is not installed")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UnusableError, match=r"PyTorch is not installed: pip install 'pydmobilenet\[torch\]'$"
    ) as caught:
        pydmobilenet.get_model(MODEL, engine=name)
    assert "\n" not in str(caught.value)


# What PyTorch's users do with a module


def test_a_network_survives_a_copy_and_a_file(tmp_path):
    net, _ = made(MODEL)
    expected = logits(net, images())
    torch.save(net, tmp_path / "net.pt")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    again = pytorch.get_model(MODEL)
    assert not np.array_equal(logits(again, images()), expected)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for other in (copy.deepcopy(net), torch.load(tmp_path / "net.pt", weights_only=False), again):
        np.testing.assert_array_equal(logits(other, images()), expected)
    assert again.description == net.description


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows(name, dtype):
    net, _ = made(name)
    expected = logits(net, images())
    with torch.no_grad():
        found = net.to(dtype)(torch.from_numpy(images()).to(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.float().numpy(), expected, rtol=0, atol=0.05 * np.ptp(expected))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_can_be_compiled_as_one_graph(name):
    net, _ = made(name)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")  # without the compiler, which takes long
    np.testing.assert_allclose(logits(compiled, images()), logits(net, images()), rtol=0, atol=1e-5)


def test_a_compiled_block_computes_the_same():
    block = made("pyd-add-11-0.125")[0].stages[1][0]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 32, 8, 8)).astype(np.float32))
    with torch.no_grad():
        expected = block(x)
        try:
            found = torch.compile(block)(x)
        except torch._inductor.exc.InvalidCxxCompiler as error:
            pytest.skip(str(error))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


# Initialisation


def drawn(initialiser, seed=0, name="pyd-concat-11-1"):
    net = build(catalog.parse_name(name), 100)
    initialize(net, initialiser, seed)
    return get_arrays(net)


@pytest.mark.gluon
@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_the_first_weights_have_gluon_s_distributions(initialiser):
    from pydmobilenet.gluon import network, trainer

    net = network.build(catalog.parse_name("pyd-concat-11-1"), 100)
    net.initialize(trainer.INITIALISERS[initialiser]())
    found, expected = drawn(initialiser), network.get_arrays(net)
    large = [name for name, array in found.items() if name.endswith(".weight") and array.size > 5000]
    assert {"head.dense.weight", "stages.2.0.spatial.conv7.weight", "stages.1.0.expand.weight"} <= {*large}
    for name in large:
        assert found[name].std() == pytest.approx(expected[name].std(), rel=0.06), name
        if initialiser == "xavier":  # uniform: the largest is the bound
            assert abs(found[name]).max() == pytest.approx(abs(expected[name]).max(), rel=0.01), name
            assert abs(found[name]).max() < 1.8 * found[name].std(), name
        else:
            assert 3 < abs(found[name]).max() / found[name].std() < 6, name
    for name in {*found} - {*large}:
        if not name.endswith(".weight"):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_the_same_seed_draws_the_same_parameters(initialiser):
    one, again, other = (drawn(initialiser, seed, MODEL) for seed in (1, 1, 2))
    weights = [name for name in one if name.endswith(".weight")]
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not [name for name in weights if np.array_equal(one[name], other[name])]
