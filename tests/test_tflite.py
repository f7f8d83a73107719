"""TensorFlow Lite files: the same function for phones and microcontrollers, read by LiteRT."""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import oracle
import pytest
from helpers import commander, first_images, make_classes

from pydmobilenet import catalog, data
from pydmobilenet.data import get_dataset, get_task
from pydmobilenet.errors import BadFileError, InvalidValueError, UnusableError
from pydmobilenet.exporting import calibration_images, channels_last, difference

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'pydmobilenet[tflite]'")
from ai_edge_litert import schema_py_generated as schema

from pydmobilenet import api
from pydmobilenet.engine import litert
from pydmobilenet.onnx import graph as onnx
from pydmobilenet.tflite import c_array, graph, metadata, quantise, session

SMALL = ["resnet-11-0.25", "mobilenet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25"]
DIGITS = ["-m", "pyd-add-29-0.25", "-d", "digits"]
CIFAR10 = get_task("cifar10")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
CODES = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}


def made(name, dataset="cifar10"):
    """A network, its arrays, and the oracle's answers."""
    network = catalog.describe(name, dataset)
    arrays = oracle.random_arrays(network)
    return network, arrays, lambda images: oracle.logits(network, arrays, images)


def operators(content):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    return [CODES[model.operatorCodes[each.opcodeIndex].builtinCode] for each in model.subgraphs[0].operators]


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: commander(monkeypatch, capsys)("export", *arguments)


@pytest.fixture
def validate(monkeypatch, capsys):
    return lambda *arguments: commander(monkeypatch, capsys)("validate", *arguments)


@pytest.mark.parametrize("name", [*SMALL, "wrn-10-1"])
def test_every_family_is_the_same_function_in_any_batch_size(name):
    network, arrays, reference = made(name)
    predict = session.predictor(graph.convert(*graph.prepare(network, arrays, CIFAR10), CIFAR10.image))
    apart = difference(reference, predict, CIFAR10, PIXELS, True)
    assert apart.logits < 1e-5
    assert apart.classes == 0
    together = predict(channels_last(PIXELS))
    for number in range(len(PIXELS)):
        np.testing.assert_allclose(predict(channels_last(PIXELS[number : number + 1]))[0], together[number], atol=1e-4)


def test_images_of_another_size_pad_as_the_checkpoints_do():
    task = get_task("cifar10").__class__("own", "own", tuple("ab"), 2, CIFAR10.mean, CIFAR10.std, image_size=44)
    network = catalog.describe("pyd-concat-11-0.25", outputs=2)
    arrays = oracle.random_arrays(network)
    pixels = np.random.default_rng(1).integers(0, 256, (2, *task.image), np.uint8)
    predict = session.predictor(graph.convert(*graph.prepare(network, arrays, task), task.image))
    assert difference(lambda images: oracle.logits(network, arrays, images), predict, task, pixels, True).logits < 1e-5


def test_a_graph_has_few_operators_and_no_depthwise_kernel_that_xnnpack_is_slow_on():
    for name in SMALL:
        content = graph.convert(*graph.prepare(*made(name)[:2], CIFAR10), CIFAR10.image)
        assert set(operators(content)) <= {
            "ADD",
            "CONCATENATION",
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "DEQUANTIZE",
            "FULLY_CONNECTED",
            "MEAN",
            "PAD",
        }
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        (part,) = model.subgraphs
        for each in part.operators:
            if CODES[model.operatorCodes[each.opcodeIndex].builtinCode] == "DEPTHWISE_CONV_2D":
                _, height, width, _ = part.tensors[each.inputs[1]].shape
                assert height * width <= 25


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_the_groups_of_columns_are_all_columns_around_the_middle(kernel):
    groups = graph.column_groups(kernel)
    assert sorted(column for group in groups for column in group) == list(range(kernel))
    for group in groups:
        assert kernel * len(group) <= 25
        assert group[0] + group[-1] == kernel - 1
        assert len(set(np.diff(group))) <= 1


def test_constants_are_aligned_as_the_schema_asks_for():
    content = graph.convert(*graph.prepare(*made(SMALL[3])[:2], CIFAR10), CIFAR10.image)
    model = schema.Model.GetRootAs(content)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    start = np.frombuffer(content, np.uint8).ctypes.data
    offsets = [buffer.DataAsNumpy().ctypes.data - start for buffer in buffers if buffer.DataLength()]
    assert len(offsets) > 20
    assert not any(offset % 16 for offset in offsets)


@pytest.mark.parametrize("name", ["pyd-add-29-0.25", "pyd-concat-29-0.25"])
def test_the_authors_networks_answer_as_published(name, weights_dir):
    source = catalog.find(name, "cifar10")
    arrays = api.checkpoints.load_record(source, weights_dir)
    from pydmobilenet.onnx.session import OnnxRuntimeEngine

    reference = OnnxRuntimeEngine(fused=False).load(source.network, arrays)
    predict = session.predictor(graph.convert(*graph.prepare(source.network, arrays, CIFAR10), CIFAR10.image))
    apart = difference(reference, predict, CIFAR10, first_images()[:200], True)
    assert apart.logits < 1e-4
    assert apart.classes == 0


def test_the_bundled_network_is_exported_and_says_what_it_is(run, tmp_path):
    path = tmp_path / "net.tflite"
    code, out, _ = run(*DIGITS, "--format", "tflite", "--output", path)
    assert code == 0
    assert "on 100 test images, same answers as the trained network" in out
    assert "by LiteRT on" in out
    content = path.read_bytes()
    about = metadata.read(content)
    assert (about["model"], about["dataset"], json.loads(about["classes"])) == (DIGITS[1], "digits", list("0123456789"))
    assert about["weights"].startswith("digits-pyd-add-29-0.25.params sha256:")
    test = get_dataset("digits", "test").head(60)
    assert (session.predictor(content)(channels_last(test.images)).argmax(axis=1) == test.labels).mean() > 0.95


def test_names_of_tensors_are_unique(quantised):
    for content in quantised[:4]:
        (part,) = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content)).subgraphs
        names = [tensor.name for tensor in part.tensors]
        assert len(set(names)) == len(names)


def test_a_file_has_the_signature_that_newer_readers_ask_for():
    network = graph.prepare(*made(SMALL[0])[:2], CIFAR10)
    runner = session.interpreter(graph.convert(*network, CIFAR10.image)).get_signature_runner("serving_default")
    assert list(runner.get_input_details()) == ["images"]
    assert runner(images=channels_last(PIXELS[:1]))["logits"].shape == (1, 10)


def test_mobile_readers_find_the_names_of_the_classes_in_any_language(tmp_path):
    model = graph.convert(
        *graph.prepare(*made(SMALL[1])[:2], CIFAR10), CIFAR10.image, metadata=metadata.dump({"model": "x"})
    )
    content = metadata.with_labels(model, ["<b>a</b>", "two\nlines", "ß 猫"])
    assert content.startswith(model)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode() == "<b>a</b>\ntwo lines\nß 猫\n"
    read = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    (entry,) = (each for each in read.metadata if each.name == b"TFLITE_METADATA")
    assert bytes(read.buffers[entry.buffer].data)[4:8] == b"M001"
    np.testing.assert_array_equal(
        session.predictor(content)(channels_last(PIXELS)), session.predictor(model)(channels_last(PIXELS))
    )


def test_a_file_of_others_or_a_damaged_one_is_refused():
    network = graph.prepare(*made(SMALL[1])[:2], CIFAR10)
    assert metadata.read(graph.convert(*network, CIFAR10.image)) == {}
    for content in (b"", b"no network"):
        with pytest.raises(BadFileError, match="no TensorFlow Lite file"):
            metadata.read(content)
    with pytest.raises(BadFileError, match="no network for LiteRT"):
        session.predictor(b"no network")(channels_last(PIXELS))


@pytest.fixture(scope="module")
def quantised():
    """The bundled network in float32 and int8, the same with whole kernels, and of this its layers and scales."""
    source = api.checkpoints.find(DIGITS[1], "digits")
    pixels = channels_last(get_dataset("digits", "train").images[:50])
    contents = []
    for whole in (False, True):
        network = graph.prepare(source.network, source.arrays(), source.task, whole)
        scales = quantise.scales(*network, source.task.image, pixels)
        contents += [graph.convert(*network, source.task.image, each) for each in (None, scales)]
    return [*contents, network, scales]


def test_int8_keeps_the_answers_and_takes_a_third_of_the_space(quantised):
    test = get_dataset("digits", "test").head(60)
    split, split_int8, whole, whole_int8 = quantised[:4]
    expected = session.predictor(split)(channels_last(test.images))
    for content in (split_int8, whole_int8):
        logits = session.predictor(content, kernels=session.BUILT_IN)(channels_last(test.images))
        assert (logits.argmax(axis=1) != expected.argmax(axis=1)).mean() < 0.05
        assert abs(logits - expected).max() < 0.1 * np.ptp(expected)
    assert len(split_int8) < 0.65 * len(split)
    assert len(whole_int8) < 0.55 * len(whole)


def test_int8_is_int8_from_the_pixels_to_the_logits(quantised):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(quantised[3]))
    (part,) = model.subgraphs
    kinds = [tensor.type for tensor in part.tensors]
    assert kinds.count(schema.TensorType.FLOAT32) == kinds.count(schema.TensorType.UINT8) == 1  # logits and pixels
    codes = operators(quantised[3])
    assert (codes[0], codes[-1]) == ("QUANTIZE", "DEQUANTIZE")
    for number, code in enumerate(codes):
        scales = [part.tensors[each].quantization for each in part.operators[number].inputs]
        if code in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            assert len(scales[1].scale) == len(scales[2].scale) > 1  # one of each channel
        if code == "CONCATENATION":
            assert len({(*each.scale, *each.zeroPoint) for each in scales}) == 1


def test_a_channel_of_zeros_or_with_a_large_bias_does_not_overflow():
    weight, bias = np.zeros((2, 1, 1, 3)), np.array([0.0, 1e6])
    weight[1] = 1e-6
    scale = graph.weight_scales(weight, bias, 0, 0.1)
    assert (scale > 0).all()
    assert (abs(bias / (scale * 0.1)) < 2**31).all()


def test_tflite_micro_answers_as_the_reference_kernels_to_one_step(quantised):
    runtime = pytest.importorskip("tflite_micro", reason="needs tflite-micro").runtime
    test = channels_last(get_dataset("digits", "test").images[:20])
    content = quantised[3]
    expected = session.predictor(content, kernels=session.REFERENCE)(test)
    steps = np.unique(expected)
    net = runtime.Interpreter.from_bytes(content)
    for pixels, logits in zip(test, expected):
        net.set_input(pixels[np.newaxis], 0)
        net.invoke()
        found = net.get_output(0)[0]
        assert found.argmax() == logits.argmax()
        assert abs(found - logits).max() <= 1.01 * np.diff(steps).min()
    assert 100_000 < session.arena(content) < 200_000


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_int8_is_written_and_says_what_it_costs(format, run, tmp_path):
    path = tmp_path / f"net.{format}"
    code, out, _ = run(*DIGITS, "--format", format, "--int8", "--calibration", 50, "--no-measure", "--output", path)
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith(f"wrote {path} in int8: pyd-add-29-0.25 for Digits, 0.1")
    assert re.match(
        r"ranges by 50 images; "
        r"error on 360 test images: \S+ % \(95 % interval \S+ to \S+\) in int8, 1\.11 % \(.*\) in float32; \d+ of 360 "
        r"answers changed.* \(\S+ %\)$",
        second,
    )


def test_a_costly_int8_file_is_written_with_a_warning(run, tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "_scale", lambda low, high: (3.0, 0))  # coarse
    command = [*DIGITS, "--format", "tflite", "--int8", "--calibration", 50, "--no-measure"]
    with pytest.warns(UserWarning, match=r"int8 raises the error from 1\.11 to"):
        assert run(*command, "--output", tmp_path / "net.tflite")[0] == 0
    assert (tmp_path / "net.tflite").exists()


def test_files_are_validated_beside_their_network(quantised, validate, tmp_path):
    source = api.checkpoints.find(DIGITS[1], "digits")
    about = {"model": source.model, "weights": f"x sha256:{source.sha256}", **data.about(source.task)}
    model = onnx.convert(source.network, source.arrays(), source.task, True, about)
    (tmp_path / "float32.onnx").write_bytes(model.SerializeToString())
    network, scales = quantised[4:]
    content = metadata.dump({**about, "dtype": "int8"})
    (tmp_path / "int8.tflite").write_bytes(graph.convert(*network, source.task.image, scales, content))
    code, out, err = validate(tmp_path / "float32.onnx", tmp_path / "int8.tflite", "--limit", 40)
    assert code == 0
    assert "float32.onnx runs on the CPU with ONNX Runtime." in err
    assert "int8.tflite runs on the CPU with LiteRT." in err
    rows = [line for line in out.splitlines() if line.startswith("| pyd-add-29-0.25")]
    verdicts = ["not judged, in interval", "not judged, in interval", "not judged"]  # int8 has no recorded error
    assert [row.split("|")[-2].strip() for row in rows] == verdicts
    changes = [line for line in out.splitlines() if "answers changed" in line]
    assert len(changes) == 2
    assert "0 of 40 answers changed" in changes[0]
    assert "int8.tflite), before pyd-add-29-0.25 (pretrained/digits-pyd-add-29-0.25.params): " in changes[1]


def test_a_file_of_another_network_is_validated_on_given_images(validate, tmp_path):
    make_classes(tmp_path / "photos", "ab", {"train": 2, "test": 3})
    task = get_task(tmp_path / "photos")
    network, arrays, _ = made(SMALL[1], f"folder:{tmp_path}/photos")
    about = {"model": SMALL[1], "weights": "own.params sha256:1", **data.about(task)}
    content = graph.convert(*graph.prepare(network, arrays, task), task.image, metadata=metadata.dump(about))
    (tmp_path / "net.tflite").write_bytes(content)
    with pytest.warns(UserWarning, match=r"the network of \S+net.tflite is not here: give its run too"):
        code, out, _ = validate(tmp_path / "net.tflite", "--data-dir", tmp_path / "photos")
    assert code == 0
    assert "not judged" in out
    assert "6 of 6 images" in out


def test_a_file_of_others_is_refused(validate, tmp_path, monkeypatch, capsys):
    network, arrays, _ = made(SMALL[1])
    (tmp_path / "net.onnx").write_bytes(onnx.convert(network, arrays, CIFAR10).SerializeToString())
    (tmp_path / "net.tflite").write_bytes(graph.convert(*graph.prepare(network, arrays, CIFAR10), CIFAR10.image))
    for name in ("net.onnx", "net.tflite"):
        code, _, err = validate(tmp_path / name)
        assert (code, err.rpartition(": ")[2]) == (2, "it does not say of which network\n")
        code, _, err = commander(monkeypatch, capsys)("predict", tmp_path, "--weights", tmp_path / name)
        assert code == 2
        assert "is a network for other programs, not its weights; pass what it was exported from" in err


@pytest.mark.parametrize("name", ["net.tflite", "net.onnx"])
@pytest.mark.parametrize("content", [None, b"", b"\0" * 100, b"no network"])
def test_a_damaged_file_is_one_line(name, content, validate, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = validate(tmp_path / name)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert ("cannot read" if content is None else "is no file of `pydmobilenet export`") in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tflite", "--calibration", 9], "calibration is only used with int8"),
        (["--format", "huggingface", "--int8"], "int8 is for the format onnx or tflite or c: leave it out"),
        (["--format", "web", "--int8"], "int8 is for the format onnx or tflite or c: leave it out"),
    ],
)
def test_options_of_int8_are_refused_elsewhere(arguments, words, run, tmp_path):
    code, _, err = run(*DIGITS, *arguments, "--output", tmp_path / "net")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert words in err


@pytest.mark.parametrize("number", [0, -5, 2.5, True])
def test_an_impossible_number_of_images_is_refused(number, tmp_path):
    with pytest.raises(InvalidValueError, match=f"^calibration is {number} "):
        api.export(DIGITS[1], tmp_path / "net.onnx", "digits", int8=True, calibration=number)


def test_every_output_has_a_label_of_any_name(tmp_path, monkeypatch):
    source = api.checkpoints.find(DIGITS[1], "digits")
    task = replace(source.task, name="folder:other", classes=("caf\udce9", "two"))  # of 10, as of cifar100-coarse
    source = replace(source, task=task)
    monkeypatch.setattr(api.checkpoints, "find", lambda *_: source)
    api.export(DIGITS[1], tmp_path / "net.tflite", format="tflite")
    with zipfile.ZipFile(tmp_path / "net.tflite") as archive:
        assert archive.read("labels.txt").decode().split("\n")[:3] == ["caf\\udce9", "two", "2"]
        assert len(archive.read("labels.txt").splitlines()) == 10
    api.export(DIGITS[1], tmp_path / "net.c", format="c")
    assert "#define PYDMOBILENET_LABELS 10\n" in (tmp_path / "net.c").read_text()


def test_calibration_images_are_of_training_alone(tmp_path):
    make_classes(tmp_path, "ab", {"train": 6, "test": 4})
    source = api.checkpoints.find(DIGITS[1], "digits")
    source = replace(source, dataset=f"folder:{tmp_path}", task=get_task(tmp_path))
    images = calibration_images(source, None, 5)
    assert images.shape == (5, 3, 32, 32)
    train = get_dataset(tmp_path, "train").images
    assert all((train == image).all(axis=(1, 2, 3)).any() for image in images)
    assert len(calibration_images(source, None, 400)) == 12


def test_a_c_array_compiles_and_is_the_file(run, tmp_path):
    path = tmp_path / "net.c"
    code, out, _ = run(*DIGITS, "--format", "c", "--int8", "--calibration", 50, "--output", path)
    assert code == 0
    assert ("tflite-micro needs" in out) == (importlib.util.find_spec("tflite_micro") is not None)
    text = path.read_text()
    numbers = re.search(r"_model\[(\d+)\] = \{([^}]*)\}", text)
    content = bytes(map(int, numbers[2].split(",")))
    assert len(content) == int(numbers[1])
    assert "columns" not in str(graph.schema.Model.GetRootAs(content).Subgraphs(0).Tensors(9).Name())
    test = get_dataset("digits", "test").head(20)
    logits = session.predictor(content, kernels=session.BUILT_IN)(channels_last(test.images))
    assert (logits.argmax(axis=1) == test.labels).mean() > 0.9


def test_hostile_names_stay_within_their_string(tmp_path):
    names = ['"; int x = 1; //', "*/", "a\\", "new\nline", "??/", "猫"]
    text = c_array.dump(b"\1\2", "a\\\n#error", names)
    assert "#error" not in text
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler")
    main = "#include <stdio.h>\nint main(void) { for (int i = 0; i < 6; i++) puts(pydmobilenet_labels[i]); }"
    (tmp_path / "net.c").write_text(text + main)
    subprocess.run([compiler, "-Wall", "-Werror", "-std=c11", "net.c", "-o", "net"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "net"], capture_output=True, check=True).stdout.decode() == "\n".join(
        [*names, ""]
    )


def test_another_function_is_refused_and_leaves_no_file(run, tmp_path, monkeypatch):
    right = graph.prepare

    def wrong(network, arrays, task, whole):
        network, folded = right(network, arrays, task, whole)
        return network, {**folded, "head.dense.bias": folded["head.dense.bias"][::-1]}

    monkeypatch.setattr(graph, "prepare", wrong)
    code, _, err = run(*DIGITS, "--format", "tflite", "--output", tmp_path / "net.tflite")
    assert code == 2
    assert "another function: on 100 images" in err
    assert list(tmp_path.iterdir()) == []


def test_options_of_an_onnx_file_are_refused(run, tmp_path):
    code, _, err = run(*DIGITS, "--format", "tflite", "--no-fuse", "--output", tmp_path / "net.tflite")
    assert (code, err.count("\n")) == (2, 1)
    assert "no-fuse is for the format onnx or web: leave it out for tflite" in err


def test_without_litert_it_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ai_edge_litert" else real(name, *rest)
    )
    for name in [name for name in sys.modules if name.startswith("pydmobilenet.tflite")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UnusableError, match=r"LiteRT is not installed: pip install 'pydmobilenet\[tflite\]'"):
        litert("export")
