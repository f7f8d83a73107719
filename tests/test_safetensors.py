"""Safetensors files: written and read, self-describing, converted from and to Gluon's, and found as published ones."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import safetensors.numpy as official
from helpers import ROOT

from pydmobilenet import api, catalog, checkpoints, cli
from pydmobilenet.checkpoints import formats, weights
from pydmobilenet.data import get_task
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UserError

MODEL = "pyd-add-11-0.125"
BUNDLED = ROOT / "pretrained" / "digits-pyd-add-29-0.25.params"


@pytest.fixture
def arrays():
    return oracle.random_arrays(catalog.describe(MODEL, "digits"))


@pytest.fixture
def file(arrays, tmp_path):
    """A file that tells its own network."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(formats.dump_safetensors(arrays, {"model": MODEL, **api.data.about(get_task("digits"))}))
    return path


def convert(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["pydmobilenet", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out + captured.err


# The format


def test_the_package_safetensors_reads_what_is_written_here(arrays, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(formats.dump_safetensors(arrays, {"note": "été \udce9"}))
    found = official.load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with official.safe_open(tmp_path / "x.safetensors", "np") as opened:
        assert opened.metadata()["note"] == "été \\udce9"
        assert opened.metadata()["format"] == "pt"


def test_what_the_package_safetensors_writes_is_read_here(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.int8).reshape(2, 3), "a": np.float16([1.5]), "empty": np.zeros((0, 4), "f4")}
    (tmp_path / "x").write_bytes(official.save(arrays, {"key": "value"}))
    found = formats.read_safetensors(tmp_path / "x")
    assert formats.read_metadata(tmp_path / "x") == {"key": "value"}
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }


def test_the_same_network_is_the_same_file_in_every_process(arrays, tmp_path):
    code = (
        "from pydmobilenet.checkpoints import formats; import numpy, sys, hashlib;"
        "text = formats.dump_safetensors({'b': numpy.ones(3), 'a': numpy.zeros((1, 2))}, dict.fromkeys('zyx', 'v'));"
        "print(hashlib.sha256(text).hexdigest(), 'torch' in sys.modules)"
    )
    answers = {subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) for _ in range(3)}
    assert len(answers) == 1
    assert answers.pop().endswith(" False\n")


def content(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **more}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (b"", "wrong first bytes"),
        (b"PK\3\4" * 9, "wrong first bytes"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "wrong first bytes"),
        ((99_000_000).to_bytes(8, "little") + b"{}", "no safetensors file, or a damaged one"),
        (content(b"{" + b'"a":[' * 20_000), "no safetensors file, or a damaged one"),
        (content(one(shape=(10**12,))), "no safetensors file, or a damaged one"),
        (content(one(shape=(2**40, 2**40))), "no safetensors file, or a damaged one"),
        (content(one(shape=(0, 2**63), offsets=(0, 0)), b""), "no safetensors file, or a damaged one"),
        (content(one(shape=(1,) * 100 + (2,))), "no safetensors file, or a damaged one"),
        (content(one(offsets=(0, 2**60))), "no safetensors file, or a damaged one"),
        (content(one(), bytes(80)), "no safetensors file, or a damaged one"),
        (content(one("BF16", (4,))), "of a type that cannot be read: 'BF16'"),
        (content(one("BOOL", (8,))), "other than whole and real numbers"),
        (content(one(__metadata__={"sha256": "00" * 32})), "do not have the SHA-256 of its metadata"),
        (content(one(), np.float32([1, np.nan]).tobytes()), "not finite: in 'a'"),
    ],
)
def test_what_is_none_is_refused_in_a_line(made, words, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(made)
    with pytest.raises(BadFileError, match=words) as refused:
        formats.read_safetensors(tmp_path / "x.safetensors")
    assert "\n" not in str(refused.value)


def test_a_device_is_not_read_to_its_end_and_an_absent_file_is_missing(tmp_path):
    with pytest.raises(BadFileError, match="wrong first bytes"):
        formats.read_safetensors(Path("/dev/zero"))
    with pytest.raises(MissingFileError, match="no such parameter file"):
        formats.read_safetensors(tmp_path / "absent")


def test_arrays_that_have_exchanged_their_names_are_noticed(tmp_path):
    whole = formats.dump_safetensors({"a": np.ones(2), "b": np.zeros(2)})
    (tmp_path / "x").write_bytes(whole.replace(b'"a"', b'"c"').replace(b'"b"', b'"a"').replace(b'"c"', b'"b"'))
    with pytest.raises(BadFileError, match="do not have the SHA-256"):
        formats.read_safetensors(tmp_path / "x")


# Files that tell their own network


def test_a_file_with_metadata_names_its_network_and_its_task(file, arrays):
    source = checkpoints.find(None, weights=file)
    assert (source.model, source.task) == (MODEL, get_task("digits"))
    assert checkpoints.resolve(MODEL, weights=file).task.outputs == 10
    for name, array in source.arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


def test_another_model_or_data_set_than_a_file_tells_is_refused(file):
    for call in (
        checkpoints.find,
        lambda model, dataset, weights: checkpoints.resolve(model, dataset, weights=weights),
    ):
        with pytest.raises(InvalidValueError, match=rf"is of {MODEL}, not of resnet-29-0.5; nearest: {MODEL}"):
            call("resnet-29-0.5", None, file)
        with pytest.raises(InvalidValueError, match=r"was trained on digits .*, not cifar10; nearest: digits"):
            call(MODEL, "cifar10", file)


def test_a_fresh_head_is_drawn_for_other_classes_than_a_file_tells(file):
    asked = checkpoints.resolve(MODEL, classes=37, weights=file)
    assert asked.task.outputs == 37
    assert "head.dense.bias" not in asked.arrays()


def test_a_file_without_metadata_is_one_of_bare_parameters(arrays, tmp_path):
    (tmp_path / "bare.safetensors").write_bytes(formats.dump_safetensors(arrays))
    assert checkpoints.inspect(tmp_path / "bare.safetensors") is None
    with pytest.raises(UserError, match="does not record its model and data set; pass both, or"):
        checkpoints.find(None, weights=tmp_path / "bare.safetensors")
    assert checkpoints.find(MODEL, "digits", tmp_path / "bare.safetensors").arrays().keys() == arrays.keys()


def test_a_file_is_known_by_its_content_and_not_by_its_name(file, tmp_path):
    file.rename(tmp_path / "net.bin")
    assert checkpoints.find(None, weights=tmp_path / "net.bin").model == MODEL


@pytest.mark.parametrize(
    "wrong", [{"model": "resnet-28-1"}, {"dataset": "mnist"}, {"classes": "{"}, {"std": "[0, 1, 1]"}, {"outputs": "3"}]
)
def test_metadata_that_describe_no_network_are_refused(wrong, arrays, tmp_path):
    told = {"model": MODEL, **api.data.about(get_task("digits")), **wrong}
    (tmp_path / "x.safetensors").write_bytes(formats.dump_safetensors(arrays, told))
    with pytest.raises(BadFileError, match="does not describe a network"):
        checkpoints.find(None, weights=tmp_path / "x.safetensors")


def test_predict_and_export_need_nothing_but_the_file(tmp_path, monkeypatch, capsys):
    network = ("-m", "pyd-add-29-0.25", "-d", "digits")
    assert convert(monkeypatch, capsys, BUNDLED, tmp_path / "x.safetensors", *network)[0] == 0
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    ours = api.predict(pixels, weights=tmp_path / "x.safetensors", engine="onnxruntime")
    theirs = api.predict(pixels, "pyd-add-29-0.25", "digits", engine="onnxruntime")
    assert ours == theirs
    api.export(None, tmp_path / "x.onnx", weights=tmp_path / "x.safetensors", engine="onnxruntime")
    assert (tmp_path / "x.onnx").exists()


# convert


def test_there_and_back_is_the_same_network(tmp_path, monkeypatch, capsys):
    there, back = tmp_path / "x.safetensors", tmp_path / "x.params"
    network = ("-m", "pyd-add-29-0.25", "-d", "digits")
    assert convert(monkeypatch, capsys, BUNDLED, there, *network) == (0, f"wrote {there}\n")
    assert convert(monkeypatch, capsys, there, back) == (0, f"wrote {back}\n")
    assert back.read_bytes() == BUNDLED.read_bytes()
    metadata = formats.read_metadata(there)
    assert (metadata["source"], metadata["source_sha256"]) == (
        BUNDLED.name,
        hashlib.sha256(BUNDLED.read_bytes()).hexdigest(),
    )
    assert json.loads(metadata["classes"]) == list("0123456789")


@pytest.mark.parametrize("target", ["net.pt", "net", "net.params.gz"])
def test_a_target_of_another_kind_is_a_mistake_before_anything_is_read(target, tmp_path, monkeypatch, capsys):
    code, text = convert(monkeypatch, capsys, tmp_path / "absent", tmp_path / target)
    assert code == 2
    assert re.search(r"ends like no parameter file; nearest: net\.(params\.)?safetensors", text)


def test_an_existing_target_and_an_unnamed_network_are_mistakes(file, arrays, tmp_path, monkeypatch, capsys):
    code, text = convert(monkeypatch, capsys, file, file)
    assert (code, "exists already" in text) == (2, True)
    code, text = convert(monkeypatch, capsys, ROOT / "pretrained" / "absent.params", tmp_path / "x.params")
    assert (code, "no such parameter file" in text) == (2, True)
    (tmp_path / "bare.params").write_bytes(formats.dump_params(arrays))
    code, text = convert(monkeypatch, capsys, tmp_path / "bare.params", tmp_path / "x.params")
    assert (code, "does not record its model" in text) == (2, True)


# Published weights


@pytest.fixture
def published(weights_dir):
    record = catalog.find("resnet-29-0.5", "cifar10")
    return record.file, weights.find(record.file, weights_dir)


def converted(place, published, **changes):
    """The authors' file as it is converted, in a directory of its own."""
    source = checkpoints.find("resnet-29-0.5", None, published[1])
    path = place / published[0].name.replace(".params", ".safetensors")
    weights.write(path, source.arrays(), {**source.metadata(), **changes})
    return path


def test_the_authors_weights_are_found_where_they_were_converted(published, tmp_path):
    path = converted(tmp_path, published)
    assert weights.find(published[0], tmp_path) == path
    ours = checkpoints.resolve("resnet-29-0.5", pretrained=True, weights_dir=tmp_path).arrays()
    theirs = weights.read(published[1])
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


@pytest.mark.parametrize("source", ["00" * 32, ""])
def test_a_file_that_was_not_converted_from_the_published_one_is_refused(published, source, tmp_path):
    converted(tmp_path, published, source_sha256=source)
    with pytest.raises(BadFileError, match="was not converted from the published file"):
        checkpoints.resolve("resnet-29-0.5", pretrained=True, weights_dir=tmp_path).arrays()


def test_a_converted_file_that_is_damaged_is_refused(published, tmp_path):
    path = converted(tmp_path, published)
    with open(path, "r+b") as opened:
        opened.seek(-9, os.SEEK_END)
        opened.write(b"\0")
    with pytest.raises(BadFileError, match="do not have the SHA-256"):
        checkpoints.resolve("resnet-29-0.5", pretrained=True, weights_dir=tmp_path).arrays()
