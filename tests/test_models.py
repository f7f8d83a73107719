"""Gluon's networks: shapes, counts, ways to run, ways to save."""

import re

import mxnet as mx
import numpy as np
import oracle
import pytest
from helpers import NETWORKS, with_gluoncv

import pydmobilenet
from pydmobilenet import catalog, machine
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.gluon.network import build_for, set_arrays

SMALLEST = ["resnet-11-0.25", "mobilenet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25"]


FAMILIES = [*((name, "cifar10") for name in [*SMALLEST, "wrn-10-2"]), (SMALLEST[3], "imagenet32")]


def images(number=2, seed=0):
    return mx.nd.array(np.random.default_rng(seed).standard_normal((number, 3, 32, 32)))


@pytest.mark.parametrize(("name", "dataset"), [*NETWORKS, ("wrn-28-2", "imagenet32"), ("wrn-10-1", "cifar10")])
def test_a_network_has_the_parameters_that_are_described_in_their_order(name, dataset):
    net = build_for(name, dataset)
    expected = catalog.describe(name, dataset).parameters
    parameters = net._collect_params_with_prefix()
    assert {key: parameter.shape for key, parameter in parameters.items()} == expected
    assert net.description == catalog.describe(name, dataset)
    # Gluon's own names, which an export has, count the layers in the order in which they are made.
    made = sorted(parameters, key=lambda key: int(re.search(r"\d+", parameters[key].name)[0]))
    for kind in ("conv", "batchnorm"):
        own = [key for key in made if parameters[key].name.startswith(kind)]
        assert own == [key for key in expected if key in own]


@pytest.mark.parametrize(("name", "dataset"), FAMILIES)
def test_a_network_is_the_function_that_is_described(name, dataset):
    net = pydmobilenet.get_model(name, dataset)
    arrays = oracle.random_arrays(net.description)
    set_arrays(net, arrays)
    x = images(3)
    expected = oracle.logits(net.description, arrays, x.asnumpy())
    np.testing.assert_allclose(net(x).asnumpy(), expected, rtol=0, atol=1e-5 * abs(expected).max())
    features = oracle.outputs(net.description, arrays, x.asnumpy())[net.description.layers[-2].name]
    np.testing.assert_allclose(net.features(x).asnumpy(), features, rtol=0, atol=1e-5 * abs(features).max())


@pytest.fixture(scope="module", params=["wrn-10-1", "wrn-16-2"])
def gluoncv_s(request, tmp_path_factory):
    """The name of a Wide ResNet, and a directory with GluonCV's: its parameters, images, and its logits of these."""
    directory = tmp_path_factory.mktemp(request.param)
    _, depth, factor = request.param.split("-")
    oracle.write_random(directory / "net.params", catalog.describe(request.param, outputs=7))
    np.save(directory / "images.npy", images(3).asnumpy())
    code = (
        "from gluoncv.model_zoo.cifarwideresnet import get_cifar_wide_resnet\n"
        f"net = get_cifar_wide_resnet({depth}, {factor}, classes=7); net.initialize()\n"
        "net.load_parameters('net.params'); logits = net(mxnet.nd.array(numpy.load('images.npy')))\n"
        "numpy.save('logits.npy', logits.asnumpy()); net.save_parameters('theirs.params')\n"
        "net.hybridize(); net(mxnet.nd.zeros((1, 3, 32, 32))); net.export('theirs')\n"
    )
    with_gluoncv(code, directory)
    return request.param, directory


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["gluon", pytest.param("pytorch", marks=pytest.mark.pytorch)])
@pytest.mark.parametrize("file", ["theirs.params", "theirs-0000.params"])
def test_a_wide_resnet_is_gluoncv_s(engine, file, gluoncv_s):
    name, directory = gluoncv_s
    x, expected = (np.load(directory / f"{each}.npy") for each in ("images", "logits"))
    net = pydmobilenet.get_model(name, classes=7, weights=directory / file, engine=engine)
    if engine == "pytorch":
        import torch

        found = net(torch.from_numpy(x)).detach().numpy()
    else:
        found = net(mx.nd.array(x)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize(("name", "dataset"), [*FAMILIES, (SMALLEST[2], "cifar100-coarse")])
def test_a_network_answers_alike_in_every_mode(name, dataset):
    net = pydmobilenet.get_model(name, dataset)
    outputs = {"cifar10": 10, "cifar100-coarse": 100, "imagenet32": 1000}[dataset]
    x = images(3)
    eager = net(x).asnumpy()
    assert eager.shape == (3, outputs)
    assert net(x[:1]).shape == (1, outputs)
    net.hybridize(static_alloc=True, static_shape=True)
    hybrid = net(x).asnumpy()
    np.testing.assert_allclose(hybrid, eager, rtol=0, atol=1e-5 * abs(eager).max())
    # one image's answer does not depend on its neighbours, nor the batch's size
    np.testing.assert_allclose(net(x[1:2]).asnumpy(), hybrid[1:2], rtol=0, atol=1e-5 * abs(eager).max())
    assert net(mx.sym.var("data")).infer_shape(data=(7, 3, 32, 32))[1] == [(7, outputs)]


@pytest.mark.parametrize("name", SMALLEST)
def test_parameters_survive_saving_and_loading(name, tmp_path):
    net, other = pydmobilenet.get_model(name), pydmobilenet.get_model(name)
    x = images(1)
    assert not np.array_equal(net(x).asnumpy(), other(x).asnumpy())
    net.save_parameters(str(tmp_path / "net.params"))
    other.load_parameters(str(tmp_path / "net.params"))
    np.testing.assert_array_equal(net(x).asnumpy(), other(x).asnumpy())


@pytest.mark.parametrize("name", SMALLEST)
def test_an_exported_graph_computes_the_same(name, tmp_path):
    net = pydmobilenet.get_model(name)
    net.hybridize()
    x = images()
    answer = net(x).asnumpy()
    net.export(str(tmp_path / "net"))
    again = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"), ctx=mx.cpu()
    )
    np.testing.assert_array_equal(again(x).asnumpy(), answer)


@pytest.mark.parametrize("name", [*SMALLEST, "wrn-10-2"])
def test_every_trained_parameter_has_a_gradient(name):
    net = pydmobilenet.get_model(name)
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    with mx.autograd.record():
        value = loss(net(images()), mx.nd.array([1, 2]))
    value.backward()
    for key, parameter in net.collect_params().items():
        if parameter.grad_req != "null":
            assert np.isfinite(parameter.grad().asnumpy()).all(), key
            assert parameter.grad().asnumpy().any(), key


def test_the_stems_scale_and_shift_are_fixed():
    net = pydmobilenet.get_model("pyd-add-11-0.25")
    fixed = [name for name, p in net._collect_params_with_prefix().items() if p.grad_req == "null"]
    assert [name for name in fixed if "running" not in name] == ["stem.norm.gamma", "stem.norm.beta"]


def test_only_the_multiplier_changes_the_width():
    net = pydmobilenet.get_model("pyd-concat-11-0.6")
    assert net.stages[0][0].reduce.weight.shape == (19, 32, 1, 1)  # int(32 * 0.6)
    assert net.stages[2][0].expand.weight.shape == (128, 3 * 76, 1, 1)


def test_another_number_of_classes_and_size():
    net = pydmobilenet.get_model("pyd-add-29-1", classes=37)
    assert net(mx.nd.zeros((1, 3, 64, 64))).shape == (1, 37)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "pyd-add-28-1"}, "nearest: pyd-add-29-1"),
        ({"name": "pyd-add-29-1", "dataset": "cifar"}, "data set 'cifar'.*cifar10"),
        ({"name": "pyd-add-29-1", "classes": 0}, "classes is 0"),
        ({"name": "pyd-add-29-1", "classes": "ten"}, "classes is 'ten'"),
        ({"name": "pyd-add-29-1", "classes": 2.5}, "classes is 2.5"),
        ({"name": "pyd-add-29-1", "classes": True}, "classes is True"),
        ({"name": "pyd-add-29-1", "classes": 2**31}, "classes is 2147483648"),
        ({"name": "pyd-add-29-1", "dataset": "imagenet-32", "classes": 1000}, "nearest: imagenet32"),
        ({"name": "pyd-add-29-1", "device": "tpu"}, "device 'tpu'.*auto, cpu, gpu"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words):
    with pytest.raises(InvalidValueError, match=words):
        pydmobilenet.get_model(**arguments)


@pytest.mark.parametrize(
    ("name", "classes"), [("pyd-add-2999-9999.9", 10), ("resnet-29-0.5", 2**31 - 1), ("wrn-28-9999", 10)]
)
def test_a_network_that_does_not_fit_into_memory_is_refused(name, classes):
    with pytest.raises(
        UnusableError, match=rf"^{name} with {classes} outputs has [\d,]+ parameters: .* GB \(allowed: "
    ):
        pydmobilenet.get_model(name, classes=classes)


def test_a_network_may_take_what_memory_is_free(monkeypatch):
    parameters = catalog.describe("pyd-add-11-0.25").complexity().parameters
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * parameters)
    pydmobilenet.get_model("pyd-add-11-0.25")
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * parameters - 1)
    with pytest.raises(UnusableError, match=f"{parameters:,} parameters"):
        pydmobilenet.get_model("pyd-add-11-0.25")


def test_a_wide_resnet_is_ready_for_use():
    net = pydmobilenet.get_model("wrn-10-1", "imagenet32")
    assert all(parameter.data().size for parameter in net.collect_params().values())
    assert net(images(2)).shape == (2, 1000)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SMALLEST)
def test_float16_follows_float32_on_a_gpu(name):
    net = pydmobilenet.get_model(name, device="gpu")
    x = images(8).as_in_context(mx.gpu())
    expected = net(x).asnumpy()
    net.cast("float16")
    np.testing.assert_allclose(net(x.astype("float16")).asnumpy(), expected, atol=0.05 * abs(expected).max())


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does():
    net = pydmobilenet.get_model("pyd-concat-29-0.25")
    expected = net(images(8)).asnumpy()
    net.collect_params().reset_ctx(mx.gpu())
    answer = net(images(8).as_in_context(mx.gpu())).asnumpy()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4 * abs(expected).max())
