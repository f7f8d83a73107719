"""Faithfulness: our networks against the authors' own graphs, weights and runner."""

import csv
import functools
import re

import mxnet as mx
import numpy as np
import pytest
from helpers import SHARED, SMALL, first_images, sampled

import pydmobilenet
from pydmobilenet import catalog, checkpoints, engine
from pydmobilenet.checkpoints import weights
from pydmobilenet.data import Dataset, get_task, normalise
from pydmobilenet.gluon.inference import fuse, predictor
from pydmobilenet.gluon.network import build_for, load_weights
from pydmobilenet.metrics import Answers, evaluate

pytestmark = pytest.mark.slow


def checkpoint_here(record):
    return record.file and SHARED / "weights" / record.file.path.split("/", 1)[1]


PRESENT = [record for record in catalog.RECORDS if record.file and checkpoint_here(record).exists()]
IMAGENET32 = [record for record in catalog.RECORDS if record.file and record.dataset == "imagenet32"]


USUAL = [record for record in PRESENT if record.model in SMALL]
ENGINES = [pytest.param(name, marks=[pytest.mark.pytorch] if name == "pytorch" else []) for name in engine.ENGINES]


def rows(records, usual):
    """Parametrise by records, named ``MODEL@DATASET``."""
    others = {False: [pytest.mark.fuzz], True: []}
    return [pytest.param(r, id=f"{r.model}@{r.dataset}", marks=others[usual(r)]) for r in records]


def runner_rows():
    path = SHARED / "reference" / "original-runner-cifar10.csv"
    with path.open() as file:
        return [(row["model"], int(row["wrong_of_first_1000"])) for row in csv.DictReader(file)]


RUNNER = runner_rows() if SHARED.is_dir() else []


@functools.lru_cache
def batch():
    return normalise(first_images()[:10], get_task("cifar10"))


def authors_network(record, parameters=None):
    parameters = parameters or checkpoint_here(record)
    graph = re.sub(r"-\d{4}\.params$", "-symbol.json", str(checkpoint_here(record)))
    return mx.gluon.SymbolBlock.imports(graph, ["data"], str(parameters))


@functools.lru_cache
def authors_logits(record):
    return authors_network(record)(mx.nd.array(batch())).asnumpy()


load_record = functools.lru_cache(checkpoints.load_record)


def test_all_published_networks_are_compared(shared):
    assert len(PRESENT) == 36


@pytest.mark.parametrize("record", rows(PRESENT, lambda record: record.dataset == "cifar10" or record in USUAL))
def test_logits_are_those_of_the_authors_graph(record, weights_dir):
    expected = authors_logits(record)
    scale = abs(expected).max()
    net = pydmobilenet.get_model(record.model, record.dataset, pretrained=True, weights_dir=weights_dir)
    eager = net(mx.nd.array(batch())).asnumpy()
    np.testing.assert_array_equal(predictor(net, mx.cpu())(batch()), expected)  # bit for bit
    np.testing.assert_allclose(eager, expected, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(predictor(fuse(net), mx.cpu())(batch()), expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("record", rows(PRESENT, USUAL.__contains__))
def test_every_engine_has_the_logits_of_the_authors_graph(record, fused, name, weights_dir):
    expected = authors_logits(record)
    predict = engine.choose(name, "cpu", fused=fused).engine.load(record.network, load_record(record, weights_dir))
    np.testing.assert_allclose(predict(batch()), expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("record", rows(IMAGENET32, lambda record: True))
def test_imagenet32_logits_are_those_of_the_authors_graph(record, shared, tmp_path):
    # The parameters are not here: random ones, in the authors' format, under the names and shapes of their graph.
    graph = mx.sym.load(re.sub(r"-\d{4}\.params$", "-symbol.json", str(checkpoint_here(record))))
    arguments, _, statistics = graph.infer_shape(data=(1, 3, 32, 32))
    rng = np.random.default_rng(0)
    arrays = {}
    for kind, names, shapes in (
        ("arg", graph.list_arguments(), arguments),
        ("aux", graph.list_auxiliary_states(), statistics),
    ):
        for name, shape in zip(names, shapes):
            if name != "data":
                low, high = (0.5, 1.5) if name.endswith(("gamma", "var")) else (-0.2, 0.2)
                arrays[f"{kind}:{name}"] = mx.nd.array(rng.uniform(low, high, shape))
    for name in arrays:  # these two are fixed in the authors' files
        if name.endswith("/conv0/batchnorm0_gamma") and "stg" not in name:
            arrays[name][:] = 1
        if name.endswith("/conv0/batchnorm0_beta") and "stg" not in name:
            arrays[name][:] = 0
    mx.nd.save(str(tmp_path / "random.params"), arrays)
    expected = authors_network(record, tmp_path / "random.params")(mx.nd.array(batch())).asnumpy()
    net = build_for(record.model, "imagenet32")
    net.initialize()
    load_weights(net, tmp_path / "random.params")
    eager = net(mx.nd.array(batch())).asnumpy()
    np.testing.assert_array_equal(predictor(net, mx.cpu())(batch()), expected)
    np.testing.assert_allclose(eager, expected, rtol=0, atol=1e-5 * abs(expected).max())


@functools.lru_cache
def predictions(name, model, weights_dir):
    """Count the errors of an engine on the first 1,000 images; return the predicted classes too."""
    with open(SHARED / "datasets" / "cifar10-test-first1000.bin", "rb") as file:
        labels = np.frombuffer(file.read(), np.uint8).reshape(1000, 3073)[:, 0].astype(np.int64)
    dataset = Dataset(get_task("cifar10"), "test", first_images(), labels, False, "first1000")
    arrays = load_record(catalog.find(model, "cifar10"), weights_dir)
    predict = engine.choose(name, "cpu").engine.load(catalog.describe(model), arrays)
    answers = Answers.empty(len(dataset))
    return evaluate(predict, dataset, 50, answers=answers).wrong, answers.classes


@pytest.mark.parametrize(("model", "wrong"), sampled(RUNNER, lambda row: row[0] in SMALL))
@pytest.mark.parametrize("name", [name for name in ENGINES if name.values[0] != "onnxruntime"])
def test_errors_of_a_training_engine_are_those_of_the_authors_runner(model, wrong, name, weights_dir):
    assert predictions(name, model, weights_dir)[0] == wrong


@pytest.mark.parametrize(("model", "wrong"), RUNNER)
def test_errors_are_those_of_the_authors_runner(model, wrong, weights_dir):
    assert predictions("onnxruntime", model, weights_dir)[0] == wrong


@pytest.mark.parametrize("name", [name for name in ENGINES if "gluon" not in name.values])
@pytest.mark.parametrize(("model", "wrong"), sampled(RUNNER, lambda row: row[0] in SMALL))
def test_every_engine_predicts_the_classes_of_gluon(model, wrong, name, weights_dir):
    expected, found = (predictions(each, model, weights_dir)[1] for each in ("gluon", name))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("record", rows([r for r in PRESENT if r.dataset == "cifar100-coarse"], USUAL.__contains__))
def test_cifar100_networks_predict_superclasses(record, weights_dir):
    # Real photographs, of other classes than CIFAR-100's: were the 80 outputs from 20 on alive, some would win.
    net = pydmobilenet.get_model(record.model, record.dataset, pretrained=True, weights_dir=weights_dir)
    task = get_task("cifar100-coarse")
    logits = predictor(net, mx.cpu())(normalise(first_images()[:200], task))
    assert logits.shape == (200, 100)
    assert logits.argmax(axis=1).max() < 20
    assert logits[:, 20:].max() < logits[:, :20].max(axis=1).min()


def test_the_stems_shift_is_zero_in_every_file(weights_dir):
    for record in PRESENT:
        arrays = weights.read(checkpoint_here(record))
        assert not arrays["stem.norm.beta"].any()
        assert (arrays["stem.norm.gamma"] == 1).all()
