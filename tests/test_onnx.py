"""Networks as ONNX files: the same function, opened without MXNet, and nothing written where it is another one."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import oracle
import pytest
from helpers import NETWORKS, ROOT, make_classes, read_picture
from PIL import Image

from pydmobilenet import catalog, cli
from pydmobilenet.checkpoints import formats
from pydmobilenet.data import get_dataset, get_task, normalise
from pydmobilenet.errors import BadFileError, InvalidValueError, UnusableError
from pydmobilenet.exporting import channels_last
from pydmobilenet.folding import fold
from pydmobilenet.onnx import export, graph, session

SMALL = ["resnet-11-0.25", "mobilenet-11-0.25", "pyd-add-11-0.25", "pyd-concat-11-0.25"]
CIFAR10 = get_task("cifar10")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
NORMAL = normalise(PIXELS, CIFAR10)
# CIFAR-100's networks are CIFAR-10's with another dense layer.
TABLES = [(name, dataset) for name, dataset in NETWORKS if dataset != "cifar100-coarse"]


def made(name, dataset="cifar10"):
    """A network, its arrays, and the oracle's answers."""
    network = catalog.describe(name, dataset)
    arrays = oracle.random_arrays(network)
    return network, arrays, lambda images: oracle.logits(network, arrays, images)


def nodes(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("name", "dataset"), [*TABLES, ("pyd-add-29-0.5", "cifar100-coarse"), ("wrn-16-2", "cifar10")])
def test_every_network_of_the_tables_is_the_same_function(name, dataset):
    network, arrays, reference = made(name, dataset)
    expected = reference(NORMAL[:1])
    for model in (graph.convert(network, arrays), graph.convert(*fold(network, arrays))):
        onnx.checker.check_model(model, full_check=True)
        apart = export.difference(lambda images: expected, CIFAR10, model, PIXELS[:1])
        assert apart.logits < 1e-5
        assert apart.classes == 0


def opencv(model):
    """OpenCV's dnn, an image a call."""
    net = pytest.importorskip("cv2").dnn.readNetFromONNX(np.frombuffer(model, np.uint8))

    def predict(images):
        net.setInput(images)
        return net.forward()

    return lambda images: np.concatenate([predict(images[number : number + 1]) for number in range(len(images))])


def openvino(model):
    core = pytest.importorskip("openvino").Core()
    net = core.compile_model(core.read_model(io.BytesIO(model)), "CPU")
    return lambda images: net({"images": images})[0]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("program", [opencv, openvino])
def test_another_program_answers_alike(program, name):
    network, arrays, reference = made(name)
    expected = reference(NORMAL)
    for model in (graph.convert(network, arrays), graph.convert(*fold(network, arrays))):
        logits = program(model.SerializeToString())(NORMAL)
        assert abs(logits - expected).max() < 1e-5 * np.ptp(expected)
        assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("program", [opencv, openvino])
def test_another_program_takes_pixels(program):
    network, arrays, reference = made(SMALL[2])
    model = graph.convert(*fold(network, arrays), CIFAR10, uint8_input=True)
    expected = reference(NORMAL)
    logits = program(model.SerializeToString())(channels_last(PIXELS))
    assert abs(logits - expected).max() < 1e-5 * np.ptp(expected)


def test_the_engine_answers_in_any_batch_size():
    network, arrays, reference = made("pyd-concat-11-0.25")
    for fused in (True, False):
        predict = session.OnnxRuntimeEngine(fused).load(network, arrays)
        for number in (1, 2, 3):
            np.testing.assert_allclose(predict(NORMAL[:number]), reference(NORMAL[:number]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("device", "error"), [("gpu", UnusableError), ("cpu:1", UnusableError), ("tpu", InvalidValueError)]
)
def test_another_device_is_refused(device, error):
    with pytest.raises(error, match=device):
        session.choose(device)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("uint8_input", [True, False])
def test_a_file_has_one_input_a_free_batch_size_and_says_what_it_is(name, fused, uint8_input, tmp_path):
    path = tmp_path / "net.onnx"
    network, arrays, reference = made(name)
    found = export.export(network, arrays, CIFAR10, path, PIXELS, reference, fused, uint8_input, {"model": name})
    assert found.logits < 1e-5
    model = onnx.load(path)
    assert nodes(model).count("BatchNormalization") == (1 + 3 if fused else 1 + 4 * 3 + 2)
    assert [each.name for each in model.graph.input] == ["images"]
    assert [each.name for each in model.graph.output] == ["logits"]
    metadata = {each.key: each.value for each in model.metadata_props}
    assert (metadata["model"], metadata["dataset"]) == (name, "cifar10")
    assert json.loads(metadata["classes"]) == list(CIFAR10.classes)
    assert (json.loads(metadata["mean"]), json.loads(metadata["std"])) == (list(CIFAR10.mean), list(CIFAR10.std))
    predict = session.predictor(path.read_bytes())
    pixels = PIXELS.transpose(0, 2, 3, 1) if uint8_input else PIXELS.astype(np.float32)
    together = predict(pixels)
    for number in range(len(pixels)):
        np.testing.assert_allclose(predict(pixels[number : number + 1])[0], together[number], atol=1e-4)


def test_another_function_is_refused_and_leaves_no_file(tmp_path):
    network, arrays, reference = made(SMALL[2])
    spoilt = {**arrays, "head.dense.bias": arrays["head.dense.bias"] + np.array([0, 0, 0, 0.1, 0, 0, 0, 0, 0, 0])}
    with pytest.raises(BadFileError, match=r"another function: on 3 images, .*\(allowed: 1e-04\).*nothing was written"):
        export.export(network, spoilt, CIFAR10, tmp_path / "net.onnx", PIXELS, reference)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fused", [True, False])
def test_parameters_that_are_not_finite_are_refused(value, fused, tmp_path):
    network, arrays, reference = made(SMALL[3])
    arrays["stages.0.0.norm3.running_var"][1] = value
    with pytest.raises(BadFileError, match="running_var has values that are not finite"):
        export.export(network, arrays, CIFAR10, tmp_path / "net.onnx", PIXELS, reference, fused)
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pydmobilenet", "export", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_the_bundled_network_is_exported_compared_on_real_digits(run, tmp_path):
    path = tmp_path / "net.onnx"
    code, out, _ = run("-m", "pyd-add-29-0.25", "-d", "digits", "--output", path)
    assert code == 0
    assert re.search(
        rf"wrote {path}: pyd-add-29-0.25 for Digits, 0.2\d MB; on 100 test images, same answers as the trained "
        r"network by (gluon|pytorch|onnxruntime) \(largest difference 0\.000\d\d %\)$",
        out,
        re.MULTILINE,
    )
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert re.fullmatch(r"digits-pyd-add-29-0.25.params sha256:[0-9a-f]{64}", metadata["weights"])
    test = get_dataset("digits", "test")
    wrong = session.predictor(path.read_bytes())(test.normalised()).argmax(axis=1) != test.labels
    assert wrong.mean() < 0.02


def test_latency_and_memory_are_printed_unless_switched_off(run, tmp_path):
    command = ["-m", "pyd-add-29-0.25", "-d", "digits", "--uint8-input", "--output", tmp_path / "net.onnx"]
    _, out, _ = run(*command)
    found = re.search(
        r"^one image on one thread takes (\S+) ms \(p50\), (\S+) ms \(p99\), on .+; a process .* takes (\d+) MB$",
        out,
        re.MULTILINE,
    )
    p50, p99, memory = map(float, found.groups())
    assert 0 < p50 <= p99
    assert 20 < memory < 400
    _, out, _ = run(*command, "--no-measure")
    assert len(out.splitlines()) == 1


def test_a_file_that_cannot_be_run_is_not_measured(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(UnusableError, match=r"net\.onnx could not be run to measure it: .*"):
        export.measure_cost(tmp_path / "net.onnx")


SAYS_AT_THE_IMPORT = """
import os, sys, types
def find_spec(name, *_):
    if name == "onnxruntime": print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
from pydmobilenet.onnx import session
"""


@pytest.mark.parametrize(("own", "then"), [(None, "1"), ("", "1"), ("true", "true"), ("0", "0")])
def test_before_its_import_onnx_runtime_is_told_not_to_report(own, then):
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment.update({} if own is None else {"ORT_DISABLE_TELEMETRY": own})
    command = [sys.executable, "-c", SAYS_AT_THE_IMPORT]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.stdout == f"{then}\n", answer.stderr


COMMANDS_AND_A_WAIT = """
import sys, time
from pydmobilenet import cli
for words in sys.argv[1:]:
    sys.argv[1:] = words.split()
    try: cli.main()
    except SystemExit as ended: assert ended.code == 0
time.sleep(12)  # ONNX Runtime's first report leaves ten seconds after its import
"""


def test_no_command_reports_to_the_maker_of_onnx_runtime(tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0.png")
    network = "-m pyd-add-29-0.25 -d digits --engine onnxruntime"
    commands = [f"export {network} --output {tmp_path}/net.onnx", f"predict {tmp_path}/0.png {network}"]
    commands.append(f"validate {network} --limit 10")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        own = ("ORT_DISABLE_TELEMETRY", "NO_PROXY", "no_proxy", "XDG_CACHE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in own}
        environment.update(HOME=str(tmp_path / "home"), HTTPS_PROXY=address, https_proxy=address)
        (tmp_path / "home").mkdir()
        script = [sys.executable, "-c", COMMANDS_AND_A_WAIT, *commands]
        answer = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody waits for an answer
            proxy.accept()
    assert answer.returncode == 0, answer.stderr
    assert "one image on one thread takes" in answer.stdout
    assert not [path for path in (tmp_path / "home").rglob("*") if "onnxruntime" in path.name]


def documented_lines():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = (block for block in blocks if "InferenceSession" in block)
    return lines


def photo(side):
    """Something like a photograph: large shapes, slopes and noise."""
    y, x = np.mgrid[:side, : 3 * side // 2]
    noise = np.random.default_rng(0).integers(0, 60, (*x.shape, 3))
    slopes = np.stack([x * 120 // side, y * 190 // side, (x // 90 + y // 70) % 2 * 180], axis=2)
    return Image.fromarray((slopes + noise).clip(0, 255).astype(np.uint8))


def with_alpha():
    image = photo(100)
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
PICTURES = {
    "large": lambda path: photo(1500).save(path, "JPEG", quality=90),
    "large and grey": lambda path: photo(400).convert("L").save(path, "JPEG"),
    "large, of ink": lambda path: photo(400).convert("CMYK").save(path, "JPEG"),
    "rotated": lambda path: photo(300).save(path, "JPEG", exif=ROTATED),
    "transparent": lambda path: with_alpha().save(path, "PNG"),
    "palette": lambda path: photo(60).quantize(20).save(path, "PNG", transparency=3),
    "grey": lambda path: photo(50).convert("L").save(path, "WEBP"),
    "small": lambda path: photo(20).save(path, "PNG"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_documented_lines_make_the_product_s_pixels(kind, tmp_path, monkeypatch):
    PICTURES[kind](tmp_path / "image.png")
    taken = []

    class InferenceSession:
        def __init__(self, *_, **__):
            pass

        def get_modelmeta(self):
            return SimpleNamespace(custom_metadata_map={"classes": '["cat"]'})

        def run(self, _, inputs):
            taken.append(inputs["images"])
            return [np.zeros((1, 1))]

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=InferenceSession))
    monkeypatch.chdir(tmp_path)
    exec(documented_lines(), {})
    picture = read_picture(tmp_path / "image.png")
    assert picture.transparent == (kind in ("transparent", "palette"))
    np.testing.assert_array_equal(taken[0], picture.pixels.transpose(1, 2, 0)[np.newaxis])


def test_the_documented_lines_classify_an_image_without_mxnet(run, tmp_path):
    assert run("-m", "pyd-add-29-0.25", "-d", "digits", "--uint8-input", "--output", tmp_path / "net.onnx")[0] == 0
    test = get_dataset("digits", "test")
    Image.fromarray(test.images[0].transpose(1, 2, 0)).save(tmp_path / "image.png")
    lines = documented_lines()
    assert len(lines.splitlines()) <= 18
    blocked = "import sys\nsys.modules['mxnet'] = sys.modules['pydmobilenet'] = None\n"
    answer = subprocess.run(
        [sys.executable, "-c", blocked + lines],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0] == str(test.labels[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "pyd-ad-29-0.25"], "unknown model 'pyd-ad-29-0.25'; nearest: pyd-add-29-0.25"),
        (["-m", "pyd-add-29-0.25", "-d", "digit"], "unknown data set 'digit'; nearest: digits"),
        (["-m", "pyd-add-29-0.3"], "no weights of pyd-add-29-0.3 are published for cifar10"),
        (["-m", "pyd-add-29-0.25"], "cifar10_pydmobilenet29_0.25_plus-0000.params is not in"),
        (["-m", "pyd-add-29-0.25", "--weights", "nowhere.params"], "no such parameter file or run: nowhere.params"),
        (["-m", "pyd-add-29-0.25", "--weights", "tests"], "tests holds no checkpoint of a run: "),
        (["-m", "pyd-add-29-0.25", "--weights", "{own}"], "with 10 classes"),
        (["-m", "pyd-add-29-0.25", "-d", "digits", "--data-dir", "/nowhere"], "no such directory: /nowhere"),
        (["-m", "pyd-add-29-0.25", "-d", "folder:/nowhere"], "no such folder: /nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(arguments, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    own = tmp_path / "own.params"
    own.write_bytes(formats.dump_params(made("pyd-concat-11-0.25")[1]))
    code, out, err = run(*(each.format(own=own) for each in arguments), "--output", tmp_path / "net.onnx")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [own]


@pytest.mark.parametrize(("output", "words"), [("no/net.onnx", "no such directory: "), (".", "it is a directory")])
def test_a_place_that_cannot_be_written_to_is_refused_first(output, words, run, tmp_path):
    code, _, err = run("-m", "pyd-add-29-0.25", "-d", "digits", "--output", tmp_path / output)
    assert code == 2
    assert words in err


def test_an_image_that_is_none_is_refused(tmp_path):
    (tmp_path / "data" / "test" / "a").mkdir(parents=True)
    (tmp_path / "data" / "test" / "a" / "0.png").write_text("no image")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(BadFileError, match="a class without any readable image"),
    ):
        export.comparison_images(get_task(tmp_path / "data"), None, str(tmp_path / "data"))


def test_the_images_of_a_comparison_are_called_what_they_are(tmp_path):
    make_classes(tmp_path / "alone", "ab", {".": 2})
    make_classes(tmp_path / "split", "ab", {"train": 2, "val": 1})
    for name, number, kind in (("alone", 4, "given"), ("split", 2, "val")):
        images_, said = export.comparison_images(get_task(tmp_path / name), None, str(tmp_path / name))
        assert (len(images_), said) == (number, kind)
