"""Every network of the zoo: shapes, counts, ways to run, ways to save."""

import csv

import mxnet as mx
import numpy as np
import pytest
from helpers import CIFAR_MODELS, NETWORKS

import pydmobilenet
from pydmobilenet import catalog, complexity, zoo
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.gluon import devices

SMALLEST = ["resnet-11-0.25", "mobilenet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25"]


def images(number=2, seed=0):
    return mx.nd.array(np.random.default_rng(seed).standard_normal((number, 3, 32, 32)))


@pytest.mark.parametrize("record", catalog.RECORDS, ids=lambda record: f"{record.model}@{record.dataset}")
def test_counts_are_exact_and_as_published(record):
    if record.model.startswith("wrn"):
        pytest.importorskip("gluoncv", exc_type=ImportError)
    counted = complexity.count(zoo.build(catalog.parse_name(record.model), record.dataset))
    assert record.exact in (None, counted)
    assert abs(counted.parameters / 1e6 - record.params_m) <= record.params_tolerance_m


def test_counts_are_those_of_the_reference(shared):
    with open(shared / "reference" / "exact-counts.csv") as file:
        for row in csv.DictReader(file):
            dataset = row["dataset"].replace("cifar100", "cifar100-coarse")
            net = zoo.build(catalog.parse_name(row["model"]), dataset)
            assert complexity.count(net) == (int(row["parameters"]), int(row["multiply_adds"])), row
            net.initialize(mx.init.Zero())
            statistics = [p.data().size for n, p in net.collect_params().items() if "running" in n]
            assert sum(statistics) == int(row["moving_statistics"]), row


@pytest.mark.parametrize(("name", "dataset"), NETWORKS)
def test_a_network_answers_alike_in_every_mode(name, dataset):
    net = pydmobilenet.get_model(name, dataset)
    outputs = {"cifar10": 10, "cifar100-coarse": 100, "imagenet32": 1000}[dataset]
    x = images(3)
    literal = net(x).asnumpy()
    assert literal.shape == (3, outputs)
    assert net(x[:1]).shape == (1, outputs)
    net.hybridize(static_alloc=True, static_shape=True)
    hybrid = net(x).asnumpy()
    np.testing.assert_allclose(hybrid, literal, rtol=0, atol=1e-5 * abs(literal).max())
    # one image's answer does not depend on its neighbours, nor the batch's size
    np.testing.assert_allclose(net(x[1:2]).asnumpy(), hybrid[1:2], rtol=0, atol=1e-5 * abs(literal).max())
    assert net(mx.sym.var("data")).infer_shape(data=(7, 3, 32, 32))[1] == [(7, outputs)]


@pytest.mark.parametrize("name", CIFAR_MODELS)
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


@pytest.mark.parametrize("name", [*SMALLEST, *CIFAR_MODELS])
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
    if name.startswith("wrn"):
        pytest.importorskip("gluoncv", exc_type=ImportError)
    with pytest.raises(
        UnusableError, match=rf"^{name} with {classes} outputs has [\d,]+ parameters: .* GB \(allowed: "
    ):
        pydmobilenet.get_model(name, classes=classes)


def test_a_network_may_take_what_memory_is_free(monkeypatch):
    parameters = complexity.count(pydmobilenet.get_model("pyd-add-11-0.25")).parameters
    monkeypatch.setattr(devices, "available_memory", lambda: 8 * parameters)
    pydmobilenet.get_model("pyd-add-11-0.25")
    monkeypatch.setattr(devices, "available_memory", lambda: 8 * parameters - 1)
    with pytest.raises(UnusableError, match=f"{parameters:,} parameters"):
        pydmobilenet.get_model("pyd-add-11-0.25")


def test_a_wide_resnet_is_ready_for_use():
    pytest.importorskip("gluoncv", exc_type=ImportError)
    net = pydmobilenet.get_model("wrn-10-1", "imagenet32")
    assert all(parameter.data().size for parameter in net.collect_params().values())
    assert net(images(2)).shape == (2, 1000)


def test_a_wide_resnet_without_gluoncv_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gluoncv.model_zoo.cifarwideresnet", None)
    with pytest.raises(UnusableError, match=r"wrn-28-2 is GluonCV's.*\.\[wrn\]"):
        pydmobilenet.get_model("wrn-28-2", "imagenet32")


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
