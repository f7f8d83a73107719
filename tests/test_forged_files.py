"""Files that are damaged, forged or made to do harm: refused on one line, soon, in little memory; or the same."""

import gzip
import io
import json
import math
import struct
import tarfile

import fuzzing
import numpy as np
import pytest
from helpers import archive_of

from pydmobilenet import checkpoints
from pydmobilenet.data import archives, cifar, imagenet32
from pydmobilenet.errors import BadFileError, UserError
from pydmobilenet.training import config
from pydmobilenet.training.checkpoint import State
from pydmobilenet.training.loop import Progress


def outcome(form, content, tmp_path):
    """Read a file; return None if it is refused on one line."""
    path = tmp_path / form.name
    path.write_bytes(content)
    try:
        return form.read(path)
    except UserError as raised:
        error = str(raised)
    assert len(error) < 1000
    assert "\n" not in error
    return None


@pytest.mark.parametrize("cases", [50, pytest.param(150, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("form", fuzzing.FORMATS, ids=lambda form: form.name)
def test_a_damaged_or_forged_file_is_refused_on_one_line(form, cases, tmp_path):
    expected = repr(outcome(form, form.content, tmp_path))
    assert expected != "None"
    refused = 0
    for content in fuzzing.variants(form, cases):
        result = outcome(form, content, tmp_path)
        refused += result is None
        assert result is None or not form.checked or repr(result) == expected
    assert refused > cases / 5


@pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("form", [form for form in fuzzing.FORMATS if form.checked], ids=lambda form: form.name)
def test_a_single_flipped_bit_is_refused_or_changes_nothing(form, cases, tmp_path):
    expected, refused = repr(outcome(form, form.content, tmp_path)), 0
    positions = np.random.default_rng(0).permutation(len(form.content))[:cases]
    for position in [*positions, *range(len(form.content) - 8, len(form.content))]:
        damaged = bytearray(form.content)
        damaged[position] ^= 1 << int(position) % 8
        result = outcome(form, bytes(damaged), tmp_path)
        refused += result is None
        assert result is None or repr(result) == expected
    assert refused > len(positions) / 3


# Archives


def tar(*members):
    """A .tar.gz of headers and contents as they are given: (name, kind, content), and perhaps another size."""
    buffer = io.BytesIO()
    for name, kind, content, *size in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size[0] if size else len(content)
        buffer.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
    return gzip.compress(buffer.getvalue() + bytes(1024))


IMAGE = fuzzing.TAR["test_batch.bin"]
WANTED = ("test_batch.bin", tarfile.REGTYPE, IMAGE)


def members(content, tmp_path):
    (tmp_path / "archive.tar.gz").write_bytes(content)
    return cifar.members(tmp_path / "archive.tar.gz", ("test_batch.bin",))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "some-folder/", f"{'directory/' * 15}", f"{'été/' * 10}"])
def test_every_kind_of_archive_is_read_whatever_the_length_of_its_names(form, folder, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as made:
        for name, content in {"x/other": b"o" * 700, f"{folder}test_batch.bin": IMAGE, "z": b""}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a time that needs a header of its own
            made.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "test_batch.bin"
        made.addfile(link)
    assert members(buffer.getvalue(), tmp_path) == [("test_batch.bin", IMAGE)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tar(("test_batch.bin", tarfile.REGTYPE, b"", 1 << 33)), "unexpected end of data"),
        (tar(("test_batch.bin", tarfile.REGTYPE, b"", 1 << 19)), "unexpected end of data"),
        (gzip.compress(bytes(2 << 20)), "unpacks to more than 1048576 bytes"),
        (tar(WANTED, *[("x", tarfile.REGTYPE, bytes(9 << 16))] * 2), "unpacks to more than 1048576 bytes"),
        (archive_of({"test_batch.bin": IMAGE}) + b"more", "Not a gzipped file"),
        (tar(WANTED)[:-8], "ended before"),
        (tar(("x", tarfile.XHDTYPE, b"1" * 20_000)), "end of file header|invalid header"),
        # By Python's limit of recursion, which libraries raise, or by the end of the file.
        (tar(*[("x", tarfile.GNUTYPE_LONGNAME, b"x")] * 500), "recursion|end of file header"),
        (tar(("test_batch.bin", tarfile.DIRTYPE, b"")), "lacks test_batch.bin"),
        (tar(("test_batch.bin", tarfile.SYMTYPE, b"")), "lacks test_batch.bin"),
        (b"", "empty file"),
    ],
    ids=["claims", "short", "bomb", "members", "behind", "cut", "digits", "chain", "directory", "link", "empty"],
)
def test_an_archive_that_is_none_is_refused(content, words, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST", 1 << 20)
    with pytest.raises(BadFileError, match=words):
        members(content, tmp_path)


def array_header(shape, descr="|u1"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n"


LABELS = array_header((3,)) + bytes([1, 2, 3])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data.npy": array_header((10**15,)) + b"x"}, "MemoryError"),
        ({"data.npy": array_header((2**40, 2**40, 0))}, "ValueError"),
        ({"data.npy": array_header((-3, 1)) + b"x"}, "ValueError"),
        ({"data.npy": array_header((1,), "|O") + bytes(8)}, "Object arrays cannot be loaded"),
        ({"data.npy": array_header((1,), "|V8") + bytes(8)}, r"\|V8 data"),
        ({"data.npy": array_header("(" * 1500 + ")" * 1500)}, "not a batch of ImageNet32"),
        ({"data.npy": b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + b"{}"}, "header"),
        ({"data.png": b"x"}, "data is not a file"),
    ],
    ids=["claims", "overflow", "negative", "objects", "void", "nested", "header", "name"],
)
def test_an_npz_that_is_none_is_refused(files, words, tmp_path):
    (tmp_path / "val_data.npz").write_bytes(fuzzing.zipped({**files, "labels.npy": LABELS}))
    with pytest.raises(BadFileError, match=words) as caught:
        imagenet32.load(tmp_path / "val_data.npz")
    assert "\n" not in str(caught.value)


def test_a_member_that_calls_itself_smaller_than_it_is_is_refused(tmp_path):
    zeros = array_header((1000, 3072)) + bytes(3072 * 1000)
    content = bytearray(fuzzing.zipped({"data.npy": zeros, "labels.npy": LABELS}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        assert struct.unpack_from("<I", content, at) == (len(zeros),)
        struct.pack_into("<I", content, at, 3200)
    with pytest.raises(ValueError, match="Bad CRC"):
        archives.read_npz(io.BytesIO(content))


# The description of a run


@pytest.mark.parametrize(
    "change",
    [
        *({"test_error": error} for error in ("2.5", True, math.nan, 10**400, -1)),
        {"sha256": ["0" * 64]},
        {"sha256": None},
    ],
    ids=str,
)
def test_a_forged_checkpoint_of_a_run_is_refused(change, tmp_path):
    checkpoint = {**fuzzing.METADATA["checkpoints"]["best.params"], **change}
    (tmp_path / "run.json").write_text(json.dumps({**fuzzing.METADATA, "checkpoints": {"best.params": checkpoint}}))
    with pytest.raises(BadFileError, match=r"run\.json does not describe a run: "):
        checkpoints.inspect(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", '{"checkpoints": 3}', "x" * (1 << 25), "\udcff"])
def test_what_does_not_describe_a_run_is_refused(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BadFileError, match=r"run\.json does not describe a run"):
        checkpoints.inspect(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": "1"},
        {"epochs": 2},
        {"epochs": -1},
        {"epochs": 1e9},
        {"batches": 4},
        {"batches": -2},
        {"batches": 10**30},
        {"images": 9},
        {"wrong": 9},
        {"loss": math.nan},
        {"loss": "1.5"},
        {"loss": 10**400},
        {"seconds": -1.0},
        {"seconds": None},
        {"history": []},
        {"history": [[]]},
        {"history": 3},
        {"history": [{**fuzzing.progress()["history"][0], "epoch": 2}]},
        {"history": [{**fuzzing.progress()["history"][0], "test_error": 10**400}]},
        {"history": [{**fuzzing.progress()["history"][0], "test_error": "many"}]},
        {"colour": 1},
    ],
)
def test_forged_progress_is_refused(change):
    with pytest.raises(BadFileError, match="the state is damaged, or of another version"):
        Progress.from_dict({**fuzzing.progress(), **change}, fuzzing.CONFIG, images=16)
    assert Progress.from_dict(fuzzing.progress(), fuzzing.CONFIG, images=16).to_dict() == fuzzing.progress()


@pytest.mark.parametrize("array", [np.array([np.nan], np.float32), np.array([1]), np.array([1.0]), np.array([1e300])])
def test_a_state_of_other_numbers_is_refused(array, tmp_path):
    State({"w": array}, {}, fuzzing.progress()).write(tmp_path / "last.state")
    with pytest.raises(BadFileError, match=r"last\.state is not the state of a run"):
        State.read(tmp_path / "last.state")


# The configuration


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epochs: *x\n", "no valid YAML: aliases are not allowed in line 1, column 9"),
        ("[" * 5_000, "no valid YAML: maximum recursion depth exceeded"),
        ("x" * 100_000, "is not a configuration"),
        (f"seed: {'9' * 60_000}\n", "…' (allowed: a whole number from 0 to 2147483647)"),
        (f"model: {'y' * 60_000}\n", "…' (allowed: a name)"),
        ("seed: 2147483648\n", "seed: '2147483648' (allowed: a whole number from 0 to 2147483647)"),
        ("learning_rate: 1e308\n", "learning_rate: '1e308' (allowed: a number above 0, at most 1000)"),
        ("weight_decay: 1e308\n", "weight_decay: '1e308' (allowed: a number from 0 to 1000)"),
    ],
)
def test_a_configuration_beyond_all_sense_is_refused(content, words, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        config.read(tmp_path / "config.yaml")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
