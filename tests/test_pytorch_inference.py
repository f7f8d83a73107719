"""PyTorch's answers: the devices that it takes, and described networks run by it."""

import pickle
import weakref
from contextlib import nullcontext

import numpy as np
import oracle
import pytest
import torch
from helpers import ROOT
from oracle import FAMILIES, conv, ended

from pydmobilenet import catalog, engine, machine
from pydmobilenet.data import get_dataset
from pydmobilenet.errors import EngineError, InvalidValueError, UnusableError
from pydmobilenet.network import IMAGES, Add, BatchNorm, ReLU
from pydmobilenet.pytorch import devices, inference, trainer
from pydmobilenet.pytorch.devices import engine_errors
from pydmobilenet.pytorch.inference import PyTorchEngine
from pydmobilenet.pytorch.network import Network
from pydmobilenet.training import config
from pydmobilenet.training.loader import make_targets

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def assert_the_oracle_s(network, fused, images=X):
    arrays = oracle.random_arrays(network)
    predict = PyTorchEngine("cpu", fused).load(network, arrays)
    expected = oracle.logits(network, arrays, images)
    for _ in range(2):  # the second time with what the first one has left
        np.testing.assert_allclose(predict(images), expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_are_the_oracle_s(name, fused):
    assert_the_oracle_s(catalog.describe(name), fused)


SHARED_INPUTS = {
    "images": [ReLU("relu", (IMAGES,)), conv("a", IMAGES), Add("end", ("a", "a"))],
    "activation": [conv("a", IMAGES), ReLU("relu", ("a",)), Add("end", ("a", "relu"))],
    "sum": [
        conv("a", IMAGES),
        conv("b", "a"),
        Add("sum", ("a", "b")),
        ReLU("relu", ("sum",)),
        Add("end", ("b", "sum")),
    ],
    "three": [conv("a", IMAGES), BatchNorm("b", ("a",), 4), ReLU("c", ("b",)), Add("end", ("a", "b", "c"))],
}


@pytest.mark.parametrize("kind", SHARED_INPUTS)
def test_nothing_is_written_over_that_is_needed_later(kind):
    images = X.copy()
    assert_the_oracle_s(ended(*SHARED_INPUTS[kind]), False, images)
    np.testing.assert_array_equal(images, X)


@pytest.mark.parametrize("images", [np.broadcast_to(X[:1], (2, 3, 32, 32)), X[::-1], X.astype(np.float64)])
def test_images_may_lie_in_memory_as_they_like(images, recwarn):
    assert_the_oracle_s(catalog.describe("pyd-add-11-0.25"), True, images)
    assert not [each for each in recwarn if each.category is UserWarning]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_map_is_kept_longer_than_it_is_needed(name, monkeypatch):
    made, alive = [], []

    def watched(function):
        def call(*inputs):
            output = function(*inputs)
            made.append(weakref.ref(output))
            alive.append(len({id(each()) for each in made if each() is not None}))
            return output

        return call

    calls_of_layers = Network.calls_of_layers
    monkeypatch.setattr(
        Network, "calls_of_layers", lambda net: [(watched(call), step) for call, step in calls_of_layers(net)]
    )
    network = catalog.describe(name)
    PyTorchEngine("cpu").load(network, oracle.random_arrays(network))(X)
    assert max(alive) <= 6  # Concat's three, with what they are of, what is to be added, and the concatenation


# What users say of TF32, by PyTorch's older switches and by those that it has had since 2.9.
PRECISIONS = {
    "by default": lambda: None,
    "all ieee": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "convolutions ieee": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "older switch": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "products high": lambda: torch.set_float32_matmul_precision("high"),
}
needs_precisions = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch 2.9 has brought them")


def settings():
    """All that PyTorch is told of TF32 and of cuDNN."""
    backends = torch.backends
    owners = [backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn]
    flags = ("enabled", "benchmark", "deterministic", "depthwise_kernel")
    return [owner.fp32_precision for owner in owners] + [getattr(backends.cudnn, flag, None) for flag in flags]


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """A user's setting, which is undone afterwards."""
    backends = torch.backends
    backends.cudnn.deterministic = True
    PRECISIONS[request.param]()
    yield settings()
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    backends.fp32_precision = backends.cuda.matmul.fp32_precision = backends.cudnn.fp32_precision = "none"
    backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"
    backends.cudnn.deterministic = False


@needs_precisions
def test_convolutions_on_a_gpu_are_not_rounded_and_all_settings_stay(precision):
    with inference.full_precision(torch.device("cuda")):
        inside = settings()
        assert inside[1] == inside[3] == "ieee"
        assert inside[2:3] + inside[4:] == precision[2:3] + precision[4:]
    assert settings() == precision


@needs_precisions
def test_a_cpu_answers_and_trains_and_all_settings_stay(precision, monkeypatch):
    network = ended(conv("a", IMAGES))
    during = []
    run = inference.run
    monkeypatch.setattr(inference, "run", lambda *all: during.append(settings()) or run(*all))
    PyTorchEngine("cpu").load(network, oracle.random_arrays(network))(X)
    assert during == [precision]
    digits = config.read(ROOT / "configs" / "digits.yaml")
    recipe = config.make({**digits, "model": "pyd-add-11-0.125", "batch_size": 3})
    made = trainer.make(recipe, get_dataset("digits").task, torch.device("cpu"))
    assert np.isfinite(made.train_step(X, make_targets(np.arange(3), 10), 0.1)().loss)
    assert settings() == precision


def test_pytorch_before_2_9_has_one_switch(monkeypatch):
    class Older:
        allow_tf32 = True

    monkeypatch.setattr(torch.backends, "cudnn", Older)
    torch.backends.cuda.matmul.allow_tf32 = True
    with inference.full_precision(torch.device("cuda")):
        assert not Older.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert Older.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False


def test_an_engine_can_be_pickled():
    network = ended(conv("a", IMAGES))
    arrays = oracle.random_arrays(network)
    made = engine.choose("pytorch", "cpu").engine
    again = pickle.loads(pickle.dumps(made))
    assert (again.device, again.batch_size, again.processes) == (made.device, 25, made.processes)
    np.testing.assert_array_equal(again.load(network, arrays)(X), made.load(network, arrays)(X))


def test_what_pytorch_throws_is_told_on_one_line():
    network = ended(conv("a", IMAGES))
    predict = PyTorchEngine("cpu").load(network, oracle.random_arrays(network))
    with pytest.raises(EngineError, match=r"^PyTorch has failed: .*channels instead$"):
        predict(X[:, :2])
    with pytest.raises(EngineError) as caught, engine_errors():
        raise RuntimeError("CUDA error: no kernel image\nCompile with `TORCH_USE_CUDA_DSA`.")
    assert str(caught.value) == "PyTorch has failed: CUDA error: no kernel image (--device cpu may help)"
    with pytest.raises(UnusableError, match="as it was"), engine_errors():
        raise UnusableError("as it was")


@pytest.fixture
def gpus(monkeypatch):
    """A build of PyTorch with CUDA, and cards of the given compute capabilities, which MXNet's CPU build cannot use."""

    def having(*capabilities):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capabilities[number])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "compute_90"])
        monkeypatch.setattr(machine, "compute_capabilities", lambda: list(capabilities))

    return having


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_gpu_that_pytorch_has_code_for_is_taken(capability, gpus):
    gpus((7, 0), capability)
    assert devices.choose("auto") == (torch.device("cuda", 1), "GPU 1", "")
    assert devices.choose("gpu:1") == devices.choose("cuda:1") == (torch.device("cuda", 1), "GPU 1", "")
    assert (PyTorchEngine("gpu:1").batch_size, PyTorchEngine("cuda:1").processes) == (500, 1)


@pytest.mark.parametrize(
    ("capabilities", "name", "words"),
    [
        ([], "gpu", "PyTorch cannot use a GPU here: NVIDIA's driver lists 0; nearest: cpu"),
        ([(9, 0)], "cuda:1", "there is no GPU 1: PyTorch finds 1; nearest: cpu"),
        ([(7, 0)], "gpu", r"GPU 0 has compute capability 7\.0; this build of PyTorch supports sm_75, .*: cpu"),
        ([], "mps", "PyTorch finds no GPU of Apple's here; nearest: cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_one_line(capabilities, name, words, gpus):
    gpus(*capabilities)
    with pytest.raises(UnusableError, match=f"^device '{name}': {words}$"):
        devices.choose(name)


@pytest.mark.parametrize("capabilities", [[], [(7, 0)]])
def test_without_a_gpu_that_it_can_use_pytorch_takes_the_cpu_and_says_why(capabilities, gpus):
    gpus(*capabilities)
    with (
        pytest.warns(UserWarning, match="compute capability 7.0.*computing on the CPU")
        if capabilities
        else nullcontext()
    ):
        chosen = devices.choose("auto")
    reason = devices.device_obstacle() if capabilities else "no GPU found"
    assert chosen == (torch.device("cpu"), "the CPU", reason)


@pytest.mark.parametrize("name", ["gpu:1,2,3", "cuda:1,2,3"])
def test_several_gpus_are_torchrun_s(name):
    words = "several GPUs: torchrun --nproc-per-node 3 train.py ...; nearest: gpu:1"
    with pytest.raises(InvalidValueError, match=f"^device '{name}': {words}$"):
        devices.choose(name)


@pytest.mark.parametrize("device", ["auto", "gpu", "cuda:0"])
@pytest.mark.parametrize("without_mxnet", [False, True])
def test_a_gpu_that_pytorch_alone_can_use_is_answered_on_by_it(device, without_mxnet, gpus, monkeypatch):
    gpus((9, 0))
    if without_mxnet:
        monkeypatch.setattr(engine.runtime, "obstacle", lambda: engine.runtime.NO_MXNET)
    choice = engine.choose("auto", device)
    assert (choice.engine.name, choice.reason) == ("pytorch", "")


@pytest.mark.gluon
@pytest.mark.parametrize(("capabilities", "device"), [([], "auto"), ([(9, 0)], "cpu")])
def test_where_no_gpu_is_to_be_used_gluon_answers(capabilities, device, gpus):
    gpus(*capabilities)
    assert engine.choose("auto", device).name == "gluon"


@pytest.mark.gluon
def test_gluon_names_pytorch_for_a_card_that_it_cannot_use(gpus):
    gpus((9, 0))
    with pytest.raises(UnusableError, match=r"CPU build.*; nearest: engine pytorch$"):
        engine.choose("gluon", "gpu")
