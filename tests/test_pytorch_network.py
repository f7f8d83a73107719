"""PyTorch's modules: the parameters and the function of every network, and what a PyTorch user does with them."""

import copy
import io
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from helpers import CIFAR_MODELS, SHARED, SMALL, first_images, with_gluoncv
from oracle import FAMILIES, conv, ended

import pydmobilenet
from pydmobilenet import catalog, engine
from pydmobilenet.checkpoints import formats
from pydmobilenet.checkpoints.weights import checkpoint_names
from pydmobilenet.data import get_task, normalise
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.network import EPSILON, IMAGES, Add, widths
from pydmobilenet.pytorch.network import Network, build, get_arrays, initialize, set_arrays

pytestmark = pytest.mark.pytorch

CASES = [*((name, "cifar10") for name in FAMILIES), ("pyd-concat-11-0.25", "imagenet32")]
MODEL = "pyd-add-11-0.25"
BUNDLED = "pyd-add-29-0.25"
CHECKPOINTS = [
    record
    for record in catalog.RECORDS
    if record.file and (SHARED / "weights" / record.file.path.split("/", 1)[1]).exists()
]


def name_of(record):
    return f"{record.model}@{record.dataset}"


def images(number=3, size=32, seed=0):
    return np.random.default_rng(seed).standard_normal((number, 3, size, size)).astype(np.float32)


def get_model(*arguments, **options):
    return pydmobilenet.get_model(*arguments, engine="pytorch", **options)


def with_random_arrays(name, dataset="cifar10", **options):
    """A network in which every parameter matters, and its parameters."""
    net = get_model(name, dataset, **options)
    arrays = oracle.random_arrays(net.description)
    set_arrays(net, arrays)
    return net, arrays


def answers(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * abs(expected).max())


# Parameters


@pytest.mark.parametrize("record", catalog.RECORDS, ids=name_of)
def test_a_network_has_the_parameters_that_are_described_and_published(record):
    description = catalog.describe(record.model, record.dataset)
    with torch.device("meta"):  # without memory for the large ones
        net = build(catalog.parse_name(record.model), description.outputs, widths(record.dataset))
    state = net.state_dict()
    found = {name: tuple(state[own].shape) for own, name in checkpoint_names(state).items()}
    assert list(found.items()) == list(description.parameters.items())
    assert net.description == description
    assert (
        sum(parameter.numel() for parameter in net.parameters())
        == (record.exact or description.complexity()).parameters
    )


@pytest.mark.parametrize("name", [*FAMILIES, *CIFAR_MODELS])
def test_every_parameter_has_a_gradient_and_the_stem_s_are_none(name):
    net = get_model(name).train()
    torch.nn.functional.cross_entropy(net(torch.from_numpy(images(2))), torch.tensor([1, 2])).backward()
    first = "features.0" if name.startswith("wrn") else "stem.norm"
    for key, parameter in net.named_parameters():
        if key in (f"{first}.weight", f"{first}.bias"):
            assert parameter.grad is None
        else:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


@pytest.mark.parametrize("initialiser", ["msra", "xavier"])
def test_initial_weights_are_drawn_as_described(initialiser):
    net = build(catalog.parse_name("resnet-11-1"), 1000)
    initialize(net, initialiser, seed=3)
    for name, array in get_arrays(net).items():
        if name.endswith("weight") and array.size > 30_000:
            fans = np.prod(array.shape[2:]) * (array.shape[0] + array.shape[1])
            gain = 2 / (1 + 0.25**2) if initialiser == "msra" else 1
            assert array.std() == pytest.approx(np.sqrt(2 * gain / fans), rel=0.02)
            assert abs(array.mean()) < 4 * array.std() / np.sqrt(array.size)
            bound = np.sqrt(6 / fans)  # of the uniform distribution; a normal one goes beyond
            assert (abs(array).max() <= bound) == (initialiser == "xavier")
        elif name.endswith("bias"):
            assert not array.any()


@pytest.mark.gluon
@pytest.mark.parametrize("initialiser", ["msra", "xavier"])
@pytest.mark.parametrize("shape", [(256, 128, 3, 3), (8192, 1, 7, 7), (1000, 512)])
def test_initial_weights_are_distributed_as_gluon_s(initialiser, shape):
    import mxnet as mx

    from pydmobilenet.gluon.trainer import INITIALISERS

    mx.random.seed(0)
    expected = mx.nd.zeros(shape)
    INITIALISERS[initialiser]()(mx.init.InitDesc("dense_weight"), expected)
    outputs, inputs, *kernel = shape
    layer = torch.nn.Linear(inputs, outputs)
    if kernel:
        groups = outputs if inputs == 1 else 1
        layer = torch.nn.Conv2d(inputs * groups, outputs, kernel[0], groups=groups)
    initialize(layer, initialiser, seed=0)
    shares = np.linspace(0.01, 0.99, 25)
    found, expected = (np.quantile(each, shares) for each in (layer.weight.detach().numpy(), expected.asnumpy()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.015 * abs(expected).max())


def test_a_seed_decides_the_initial_weights_and_leaves_the_global_generator_alone():
    net = build(catalog.parse_name(MODEL), 10)
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        initialize(net, seed=seed)
        drawn.append(get_arrays(net)["head.dense.weight"])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


# The function


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_a_network_is_the_function_that_is_described(name, dataset):
    net, arrays = with_random_arrays(name, dataset)
    expected = oracle.outputs(net.description, arrays, images())
    head, pooled = (expected[net.description.layers[place].name] for place in (-1, -2))
    assert not net.training
    assert_close(answers(net, images()), head)
    with torch.no_grad():
        maps = net.forward_features(torch.from_numpy(images()))
        assert_close(net.forward_head(maps, pre_logits=True).numpy(), pooled)
    assert_close(answers(net, images()[1:2]), head[1:2])  # no image's answer depends on its neighbours


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_in_training_the_statistics_are_the_batch_s(name, dataset, monkeypatch):
    net, arrays = with_random_arrays(name, dataset)
    statistics = {}

    def batch_norm(layer, own, x):
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        count = x.size / x.shape[1]
        statistics[layer.name] = mean.ravel(), variance.ravel() * count / (count - 1)  # PyTorch's is unbiased
        scale = own["gamma"][:, None, None] if layer.scale else 1
        return (x - mean) / np.sqrt(variance + EPSILON) * scale + own["beta"][:, None, None]

    monkeypatch.setitem(oracle.OPERATORS, "BatchNorm", batch_norm)
    expected = oracle.logits(net.description, arrays, images(8))
    assert_close(answers(net.train(), images(8)), expected)
    found = get_arrays(net)
    for layer, batch in statistics.items():
        for kind, new in zip(("running_mean", "running_var"), batch):
            old = arrays[f"{layer}.{kind}"]
            assert_close(found[f"{layer}.{kind}"], 0.9 * old + 0.1 * new)


@pytest.mark.parametrize("name", FAMILIES)
def test_larger_images(name):
    net, arrays = with_random_arrays(name, classes=37)
    assert_close(answers(net, images(1, 64)), oracle.logits(net.description, arrays, images(1, 64)))


@pytest.mark.gluon
@pytest.mark.parametrize("record", [record for record in CHECKPOINTS if record.model in SMALL], ids=name_of)
def test_the_authors_weights_answer_as_in_gluon(record, weights_dir):
    import mxnet as mx

    asked = {"pretrained": True, "weights_dir": weights_dir}
    batch = normalise(first_images()[:8], get_task("cifar10"))
    expected = pydmobilenet.get_model(record.model, record.dataset, engine="gluon", **asked)(mx.nd.array(batch))
    found = answers(get_model(record.model, record.dataset, **asked), batch)
    np.testing.assert_allclose(found, expected.asnumpy(), rtol=0, atol=1e-5 * np.ptp(expected.asnumpy()))
    np.testing.assert_array_equal(found.argmax(1), expected.asnumpy().argmax(1))


@pytest.mark.gluon
@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 2)])
def test_a_wide_resnet_is_gluoncv_s(depth, factor, tmp_path):
    name = f"wrn-{depth}-{factor}"
    oracle.write_random(tmp_path / "net.params", catalog.describe(name, outputs=7))
    np.save(tmp_path / "images.npy", images())
    code = (
        "from gluoncv.model_zoo.cifarwideresnet import get_cifar_wide_resnet\n"
        f"net = get_cifar_wide_resnet({depth}, {factor}, classes=7); net.initialize()\n"
        "net.load_parameters('net.params'); logits = net(mxnet.nd.array(numpy.load('images.npy')))\n"
        "numpy.save('logits.npy', logits.asnumpy()); net.save_parameters('theirs.params')\n"
    )
    with_gluoncv(code, tmp_path)
    net = get_model(name, classes=7, weights=tmp_path / "theirs.params")
    assert_close(answers(net, images()), np.load(tmp_path / "logits.npy"))


UNFIT = {
    "the layers of part are not consecutive": [conv("part.a", IMAGES), conv("b", "part.a"), conv("part.c", "b")],
    "needs part.a from inside another block": [
        conv("part.a", IMAGES),
        conv("part.b", "part.a"),
        Add("sum", ("part.a", "part.b")),
    ],
}


@pytest.mark.parametrize("words", UNFIT)
def test_layers_of_one_name_belong_together(words):
    with pytest.raises(ValueError, match=words):
        Network(ended(*UNFIT[words]))


# Asking for a network


def test_with_other_classes_the_body_has_the_published_weights_and_the_head_fresh_ones():
    whole = get_arrays(get_model(BUNDLED, "digits", pretrained=True))
    net = get_model(BUNDLED, "digits", classes=37, pretrained=True)
    assert answers(net, images(1)).shape == (1, 37)
    for name, value in get_arrays(net).items():
        if not name.startswith("head.dense"):
            np.testing.assert_array_equal(value, whole[name], err_msg=name)
    assert net.head.dense.weight.std() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "torch"}, r"engine for networks 'torch'; nearest: pytorch.*allowed: auto, gluon, pytorch"),
        ({"device": "tpu"}, r"device 'tpu'.*auto, cpu, gpu"),
        ({"classes": 0}, r"classes is 0"),
        ({"dataset": "cifar"}, r"data set 'cifar'.*cifar10"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(options, words):
    with pytest.raises(InvalidValueError, match=words) as caught:
        pydmobilenet.get_model(MODEL, **{"engine": "pytorch", **options})
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_fit_into_memory_is_refused():
    with pytest.raises(UnusableError, match=r"^wrn-28-9999 with 10 outputs has [\d,]+ parameters: .* GB \(allowed: "):
        get_model("wrn-28-9999")


def test_without_mxnet_a_network_is_pytorch_s(monkeypatch):
    monkeypatch.setattr(engine.runtime, "obstacle", lambda: "MXNet is not here")
    assert isinstance(pydmobilenet.get_model(MODEL), torch.nn.Module)


@pytest.mark.parametrize("trained_by", [pytest.param("gluon", marks=pytest.mark.gluon), "pytorch"])
def test_a_run_of_either_engine_gives_its_best_network(trained_by, tmp_path):
    recipe = {"epochs": 1, "batch_size": 256, "warmup_epochs": 0, "device": "cpu", "progress": False}
    run = pydmobilenet.train(MODEL, "digits", engine=trained_by, output=tmp_path / "run", **recipe)
    net = run.model(engine="pytorch")
    arrays = formats.read_params(run.directory / "best.params")
    assert_close(answers(net, images()), oracle.logits(catalog.describe(MODEL, "digits"), arrays, images()))


# What a PyTorch user does with it


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_can_be_copied_pickled_and_saved(name):
    net, _ = with_random_arrays(name)
    expected = answers(net, images())
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(net, whole)
    torch.save(net.state_dict(), state)
    whole.seek(0)
    state.seek(0)
    fresh = get_model(name)
    fresh.load_state_dict(torch.load(state))
    twin = copy.deepcopy(net)
    for other in (fresh, twin, torch.load(whole, weights_only=False)):
        np.testing.assert_array_equal(answers(other, images()), expected)
        assert other.description == net.description
    with torch.no_grad():
        next(twin.parameters()).zero_()
    np.testing.assert_array_equal(answers(net, images()), expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.half, 0.01), (torch.bfloat16, 0.08), (torch.double, 1e-12)])
def test_a_network_answers_in_every_type(name, dtype, tolerance):
    net, arrays = with_random_arrays(name)
    expected = oracle.logits(net.description, arrays, images())
    with torch.no_grad():
        found = net.to(dtype)(torch.from_numpy(images()).to(dtype))
    assert found.dtype == dtype
    assert_close(found.double().numpy(), expected, tolerance)


def test_an_activation_in_place_leaves_the_images_alone():
    net, _ = with_random_arrays(MODEL)
    x = torch.from_numpy(images())
    before = x.clone()
    net(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_can_be_compiled_as_one_graph(name):
    net, arrays = with_random_arrays(name)
    compiled = torch.compile(net, fullgraph=True, backend="eager")  # traced only: generating code takes long
    assert_close(answers(compiled, images()), oracle.logits(net.description, arrays, images()))


@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs a compiler and Python's headers",
)
def test_compiled_blocks_answer_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net, arrays = with_random_arrays(MODEL)
    net.stages[1][0].compile()  # the one with a stride and a projection
    assert_close(answers(net, images()), oracle.logits(net.description, arrays, images()))
