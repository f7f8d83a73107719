"""The names of devices, and which engine is chosen for what."""

import pytest
from helpers import TRAINERS

import pydmobilenet
from pydmobilenet import devices, engine, gluon
from pydmobilenet.errors import InvalidValueError, UnusableError
from pydmobilenet.gluon import runtime

ENGINES = [*TRAINERS, "onnxruntime"]
ABSENT = {"gluon": "MXNet is not here", "pytorch": "PyTorch is not here", "onnxruntime": "ONNX Runtime is not here"}


@pytest.fixture
def absent(monkeypatch):
    """Engines are absent, a function of their names; the others are there, and no GPU."""
    monkeypatch.setattr(engine, "_only_pytorch_uses_gpu", lambda wanted: wanted.kind == "mps")

    def without(*names):
        monkeypatch.setattr(engine, "obstacle", lambda name: ABSENT[name] if name in names else "")

    monkeypatch.setattr(engine, "_devices", lambda name, device, purpose: [devices.Device(device, device)])
    without()
    return without


@pytest.mark.parametrize(
    ("name", "kind", "numbers"),
    [
        ("auto", "auto", ()),
        ("cpu", "cpu", ()),
        ("cpu:1", "cpu", (1,)),
        ("gpu", "gpu", ()),
        ("cuda", "gpu", ()),
        ("gpu:2", "gpu", (2,)),
        ("cuda:0,3", "gpu", (0, 3)),
        ("mps", "mps", ()),
        ("2", "gpu", (2,)),  # as in the authors' runner
        ("-1", "cpu", ()),
    ],
)
def test_a_device_s_name_is_a_kind_and_numbers(name, kind, numbers):
    assert devices.parse(name) == (name, kind, numbers)


@pytest.mark.parametrize("name", ["tpu", "gpu:x", "auto:1", "cuda:", "cpu:", "mps:0", "gpu:0,", "-2", "1.0", ""])
def test_an_unknown_device_is_named(name):
    with pytest.raises(
        InvalidValueError, match=rf"^unknown device '{name}'.* \(allowed: auto, cpu, gpu, gpu:N, mps\)$"
    ):
        devices.parse(name)


def test_the_nearest_device_is_named():
    for name, nearest in (("gpus:1", "gpu"), ("gpu:1,1,0", "gpu:1,0")):
        with pytest.raises(InvalidValueError, match=f"nearest: {nearest}"):
            devices.parse(name)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_computes_on_the_cpu_and_refuses_an_unknown_device(name):
    for device in ("cpu", "-1", "cpu:0"):
        assert str(engine.choose(name, device)) == f"on the CPU with {engine.TITLES[name]}"
    for purpose in ("inference", "training") if name in engine.TRAINERS else ("inference",):
        with pytest.raises(InvalidValueError, match="unknown device 'tpu'"):
            engine.choose(name, "tpu", purpose)


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        pytest.param("gluon", "cpu:0,1", "several are for training; nearest: cpu:0", marks=pytest.mark.gluon),
        pytest.param("gluon", "mps", "MXNet cannot use Apple's GPU", marks=pytest.mark.gluon),
        pytest.param("pytorch", "cpu:1", "PyTorch has one CPU; nearest: cpu", marks=pytest.mark.pytorch),
        ("onnxruntime", "gpu", "runs on the CPU here, not on gpu; nearest: --device cpu"),
        ("onnxruntime", "cpu:1", "runs on the CPU here, not on cpu:1"),
    ],
)
def test_a_device_that_an_engine_cannot_use_is_refused_in_one_line(name, device, words):
    with pytest.raises((InvalidValueError, UnusableError)) as caught:
        engine.choose(name, device)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.gluon
def test_gluon_trains_on_several_devices():
    choice = engine.choose("gluon", "cpu:0,1", "training")
    assert [each.device.device_id for each in choice.devices] == [0, 1]
    assert str(choice) == "on the CPU and the CPU with Gluon"


@pytest.mark.parametrize("purpose", ["inference", "networks", "training"])
def test_gluon_is_the_reference_where_it_can_be_used(purpose, absent):
    choice = engine.choose(purpose=purpose)
    assert (choice.name, choice.reason) == ("gluon", "")
    assert engine.choose(device="mps", purpose=purpose).name == "pytorch"


def test_without_mxnet_onnx_runtime_answers_and_pytorch_trains(absent, monkeypatch):
    absent("gluon")
    assert str(engine.choose()) == "on auto with ONNX Runtime (MXNet is not here)"
    for purpose in ("networks", "training"):
        assert str(engine.choose(purpose=purpose)) == "on auto with PyTorch (MXNet is not here)"
    monkeypatch.setitem(ABSENT, "gluon", runtime.NO_MXNET)
    assert str(engine.choose()) == "on auto with ONNX Runtime"


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        (["gluon", "pytorch"], ("auto", "cpu", "training"), "training needs MXNet or PyTorch: {gluon}; {pytorch}"),
        (["gluon", "pytorch"], ("auto", "cpu", "networks"), "networks need MXNet or PyTorch: {gluon}; {pytorch}"),
        (["gluon"], ("gluon", "cpu", "training"), "engine 'gluon': {gluon}; nearest: pytorch"),
        (["pytorch"], ("pytorch", "cpu", "training"), "engine 'pytorch': {pytorch}; nearest: gluon"),
        (["gluon", "pytorch"], ("pytorch", "cpu", "training"), "engine 'pytorch': {pytorch}"),
        (["gluon"], ("gluon", "cpu"), "engine 'gluon': {gluon}; nearest: onnxruntime"),
        (["onnxruntime", "pytorch"], ("onnxruntime",), "engine 'onnxruntime': {onnxruntime}; nearest: gluon"),
    ],
)
def test_an_engine_that_is_absent_is_refused_with_the_nearest(missing, arguments, words, absent):
    absent(*missing)
    with pytest.raises(UnusableError) as caught:
        engine.choose(*arguments)
    assert str(caught.value) == words.format(**ABSENT)


@pytest.mark.parametrize(
    ("purpose", "name", "allowed"),
    [
        ("inference", "engine", "auto, gluon, pytorch, onnxruntime"),
        ("networks", "engine for networks", "auto, gluon, pytorch"),
        ("training", "engine for training", "auto, gluon, pytorch"),
    ],
)
def test_an_unknown_engine_is_named_with_the_nearest(purpose, name, allowed):
    with pytest.raises(
        InvalidValueError, match=rf"^unknown {name} 'torch'; nearest: pytorch.* \(allowed: {allowed}\)$"
    ):
        engine.choose("torch", purpose=purpose)


@pytest.mark.parametrize(
    ("options", "lack"),
    [
        ({"family": "pyd-max"}, "has no network of family 'pyd-max'"),
        ({"dtype": "bfloat16"}, "has no bfloat16 (allowed: float32, on a GPU float16)"),
        ({"compiled": True}, "has no --compile"),
        ({"pyramid": "triton"}, "has no --pyramid triton"),
    ],
)
def test_what_gluon_lacks_is_trained_by_pytorch(options, lack, absent):
    compiling = "; compiling first, which may take minutes" if "compiled" in options else ""
    assert str(engine.choose(purpose="training", **options)) == f"on auto with PyTorch (Gluon {lack}{compiling})"
    with pytest.raises(UnusableError) as caught:
        engine.choose("gluon", purpose="training", **options)
    assert str(caught.value) == f"engine 'gluon' {lack}; nearest: pytorch"
    absent("pytorch")
    with pytest.raises(UnusableError) as caught:
        engine.choose(purpose="training", **options)
    assert str(caught.value) == f"Gluon {lack}, and {ABSENT['pytorch']}"


def test_a_network_of_a_family_without_a_block_in_gluon_is_pytorch_s_but_gluon_answers(absent):
    choice = engine.choose(purpose="networks", family="pyd-max")
    assert (choice.name, choice.reason) == ("pytorch", "Gluon has no network of family 'pyd-max'")
    with pytest.raises(UnusableError, match="engine 'gluon' has no network of family 'pyd-max'; nearest: pytorch"):
        engine.choose("gluon", purpose="networks", family="pyd-max")
    assert engine.choose(family="pyd-max").name == "gluon"


@pytest.mark.gluon
@pytest.mark.parametrize("call", ["get_model", "train"])
def test_the_family_of_a_model_decides(call, monkeypatch):
    monkeypatch.setattr(gluon, "FAMILIES", ("resnet",))
    arguments = ["pyd-add-11-0.25"] if call == "get_model" else ["pyd-add-11-0.25", "digits"]
    with pytest.raises(UnusableError, match="has no network of family 'pyd-add'"):
        getattr(pydmobilenet, call)(*arguments, engine="gluon")


@pytest.mark.gluon
def test_gluon_s_families_are_those_with_a_block():
    from pydmobilenet.gluon.network import SPATIAL

    assert set(gluon.FAMILIES) == {*SPATIAL, "wrn"}
