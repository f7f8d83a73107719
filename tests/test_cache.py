"""Decoded pictures are kept for the next run: what is read again, what is decoded again, and what may go wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import LIMIT, ROOT, commander, make_classes, no_larger_files_than
from PIL import Image

from pydmobilenet.data import cache, get_dataset, get_task, images
from pydmobilenet.errors import BadFileError, InvalidValueError


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(cache, "directory", lambda: tmp_path / "cache")
    monkeypatch.setenv("PYDMOBILENET_CACHE", "1 GB")
    monkeypatch.setattr(cache, "SETTLED", -(10**18))  # files are as good as old; their `st_ctime` cannot be set
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path):
    return make_classes(tmp_path / "photos", "ab", {".": 4}, side=40)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, and of those that are read."""
    names, contents, decode, content = [], [], images.to_picture, images.content

    def to_picture(data, name, *arguments):
        names.append(Path(name).name)
        return decode(data, name, *arguments)

    def counted(path):
        contents.append(path.name)
        return content(path)

    monkeypatch.setattr(images, "to_picture", to_picture)
    monkeypatch.setattr(images, "content", counted)

    def since():
        result = sorted(names), sorted(contents)
        names.clear(), contents.clear()
        return result

    return since


def read(folder, **options):
    return get_dataset(folder, "all", **options)


def assert_equal(found, expected):
    assert (found.files, found.hashes, found.note) == (expected.files, expected.hashes, expected.note)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_second_start_opens_no_picture(photos, decoded):
    first = read(photos)
    assert [len(names) for names in decoded()] == [8, 8]
    assert_equal(read(photos), first)
    assert decoded() == ([], [])
    assert_equal(read(photos, cache=False), first)
    assert len(decoded()[0]) == 8


def test_a_bar_is_shown_while_pictures_are_read(photos, capsys):
    read(photos, progress=True)
    assert capsys.readouterr().err.startswith("\rread photos:   0%")
    read(photos, progress=True)
    assert capsys.readouterr() == ("", "")


def test_transparency_is_kept(photos, decoded):
    Image.new("RGBA", (40, 40), (9, 9, 9, 90)).save(photos / "a" / "clear.png")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 9 images had transparency"):
            read(photos)
    assert len(decoded()[0]) == 9


def test_only_what_has_changed_is_decoded(photos, decoded, directory):
    read(photos)
    decoded()
    Image.new("RGB", (50, 50), "red").save(photos / "a" / "new.png")
    Image.new("RGB", (50, 50), "blue").save(photos / "b" / "01.png")
    (photos / "b" / "03.png").unlink()
    (photos / "b" / "02.png").rename(photos / "a" / "moved.png")
    found = read(photos)
    assert decoded() == (["01.png", "new.png"], ["01.png", "moved.png", "new.png"])
    assert_equal(found, read(photos, cache=False))
    decoded()
    read(photos)
    assert decoded() == ([], [])
    assert len(list(directory.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="st_ctime is of the file's creation there")
def test_a_file_replaced_by_another_of_its_size_and_time_is_decoded(photos, decoded, tmp_path):
    old = photos / "a" / "00.png"
    times = os.stat(old).st_atime_ns, os.stat(old).st_mtime_ns
    read(photos)
    decoded()
    content = bytearray(old.read_bytes())
    other = photos / "a" / "01.png"
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    red = (tmp_path / "red.png").read_bytes()
    (tmp_path / "red.png").write_bytes(red + bytes(len(content) - len(red)))  # what follows the end is ignored
    os.utime(tmp_path / "red.png", ns=times)
    shutil.copy2(tmp_path / "red.png", old)
    assert (old.stat().st_size, old.stat().st_mtime_ns) == (len(content), times[1])
    found = read(photos)
    assert decoded()[0] == ["00.png"]
    assert (found.images[found.files.index(os.path.join("a", "00.png")), 0] == 255).all()
    assert other.exists()


def test_a_file_changed_a_moment_ago_is_read_again_but_not_decoded(photos, decoded, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED", 3600 * 10**9)
    read(photos)
    assert len(decoded()[0]) == 8
    read(photos)
    assert decoded() == ([], sorted(path.name for path in photos.rglob("*.png")))


def test_another_size_and_another_way_of_decoding_are_other_files(photos, decoded, directory):
    task = get_task(photos)
    for each in (task, replace(task, image_size=16), replace(task, decoding="full")):
        read(photos, task=each)
        assert len(decoded()[0]) == 8
    assert len(list(directory.iterdir())) == 3


def test_no_byte_of_the_file_can_change_unseen(photos, decoded, directory):
    first = read(photos)
    (file,) = directory.iterdir()
    content = file.read_bytes()
    for position in [*range(0, len(content), len(content) // 60), len(content) - 1]:
        file.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        assert_equal(read(photos), first)


@pytest.mark.parametrize("damage", [b"", b"no archive", "half", "other arrays"])
def test_a_damaged_file_is_written_anew(damage, photos, decoded, directory):
    first = read(photos)
    (file,) = directory.iterdir()
    content = file.read_bytes()
    if damage == "other arrays":
        with file.open("wb") as stream:
            np.savez(stream, names=np.arange(3))
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    decoded()
    assert_equal(read(photos), first)
    assert len(decoded()[0]) == 8
    assert file.read_bytes() == content


def test_bad_files_are_told_each_time_and_the_others_kept(photos, decoded):
    (photos / "b" / "bad.png").write_bytes(b"no image")
    with pytest.raises(BadFileError, match=r"bad\.png cannot be read as an image"):
        read(photos)
    assert len(decoded()[1]) == 9
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"bad\.png cannot be read as an image .*: skipped"):
            found = read(photos, skip_bad=True)
        assert len(found) == 8
        assert decoded()[0] == ["bad.png"]


def test_the_first_bad_file_in_order_is_told(photos):
    for name in ("zz.png", "04.png", "05.png"):
        (photos / "a" / name).write_bytes(b"no image")
    with pytest.raises(BadFileError, match=r"04\.png"):
        read(photos)


@pytest.mark.parametrize("off", ["0", "0 GB"])
def test_turn_the_cache_off(off, photos, directory, monkeypatch):
    monkeypatch.setenv("PYDMOBILENET_CACHE", off)
    read(photos)
    assert not directory.exists()


@pytest.mark.parametrize("wrong", ["much", "-1 GB", "10 GiBs", "1e9"])
def test_refuse_another_size(wrong, photos, monkeypatch):
    monkeypatch.setenv("PYDMOBILENET_CACHE", wrong)
    with pytest.raises(InvalidValueError, match=r"PYDMOBILENET_CACHE is '.*' .allowed: a size, as '10 GB'"):
        read(photos)


@pytest.mark.parametrize(
    ("text", "size"), [("", 10**10), ("500 MB", 5 * 10**8), ("1.5g", 1.5e9), ("2tb", 2e12), ("77", 77)]
)
def test_sizes(text, size, monkeypatch):
    monkeypatch.setenv("PYDMOBILENET_CACHE", text)
    assert cache.limit() == size


def test_the_files_used_longest_ago_go(tmp_path, decoded, directory, monkeypatch):
    folders = [make_classes(tmp_path / name, "ab", {".": 4}, side=40) for name in ("one", "two", "three")]
    for folder in folders[:2]:
        read(folder)
    files = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    left = directory / ".x.npz.00.part"
    left.write_bytes(bytes(9))
    for age, path in enumerate([left, *files[::-1]]):
        os.utime(path, (time.time() - 10**6 + age,) * 2)
    read(folders[0])  # now the last one
    monkeypatch.setenv("PYDMOBILENET_CACHE", str(int(2.5 * files[0].stat().st_size)))
    decoded()
    read(folders[2])
    assert len(decoded()[0]) == 8
    assert len(list(directory.iterdir())) == 2
    assert not left.exists()
    read(folders[0])
    assert decoded()[0] == []
    monkeypatch.setenv("PYDMOBILENET_CACHE", "20 kB")
    with pytest.warns(UserWarning, match=r"0\.0 GB of decoded pictures are not kept .*: more than PYDMOBILENET_CACHE"):
        read(folders[0])


def test_a_lower_limit_holds_from_the_next_reading_on(tmp_path, directory, monkeypatch):
    folders = [make_classes(tmp_path / name, "ab", {".": 4}, side=40) for name in ("one", "two")]
    for folder in folders:
        read(folder)
    size = max(path.stat().st_size for path in directory.iterdir())
    monkeypatch.setenv("PYDMOBILENET_CACHE", str(int(1.5 * size)))
    read(folders[1])  # writes nothing
    assert len(list(directory.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_one_warning(photos, directory, decoded, recwarn):
    directory.write_bytes(b"")
    first = read(photos)
    assert [str(each.message).partition(": ")[0] for each in recwarn] == [
        "decoded pictures are not kept for the next run"
    ]
    directory.unlink()
    told = pytest.warns(UserWarning, match=r"not kept for the next run: cannot write .*: File too large")
    with told, no_larger_files_than(1000):
        assert_equal(read(photos), first)
    assert list(directory.iterdir()) == []


def read_interrupted(folder, monkeypatch, number, meanwhile=lambda: None):
    """Read a folder until its so-manieth file, do something meanwhile, and be interrupted."""
    monkeypatch.setattr(images, "THREADS", 1)
    real, calls = images.content, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == number:
            monkeypatch.setattr(images, "content", real)
            meanwhile()
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(images, "content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(folder)


def test_an_interruption_keeps_what_is_decoded(tmp_path, decoded, monkeypatch):
    folder = make_classes(tmp_path / "photos", "ab", {".": 100}, side=4)
    read_interrupted(folder, monkeypatch, 150)
    decoded()
    read(folder)
    assert 0 < len(decoded()[0]) <= 200 - 128


def test_an_interrupted_process_does_not_replace_what_another_one_has_kept(tmp_path, decoded, directory, monkeypatch):
    folder = make_classes(tmp_path / "photos", "ab", {".": 5}, side=4)
    read_interrupted(folder, monkeypatch, 5, lambda: read(folder))  # the other process reads all
    decoded()
    read(folder)
    assert decoded() == ([], [])


def test_commands_take_no_cache(photos, directory, monkeypatch, capsys, tmp_path):
    call = commander(monkeypatch, capsys)
    show = ["show", "--dataset", f"{photos}", "--output", tmp_path / "grid.png"]
    assert call(*show, "--no-cache")[0] == 0
    assert not directory.exists()
    assert call(*show)[0] == 0
    assert len(list(directory.iterdir())) == 1


READ = """
import sys
from pydmobilenet.data import cache, get_dataset
cache.SAVE_EVERY, cache.WRITING, cache.CHUNK, cache.SETTLED = 0, 0, 4, -10**18
print(len(get_dataset(sys.argv[1], "all").hashes), flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_harms_nothing(tmp_path):
    folder = make_classes(tmp_path / "photos", "ab", {".": 60}, side=200)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-c", READ, str(folder)]

    def run(delay):
        process = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            return process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
            return process.communicate()

    begun = time.monotonic()
    assert run(LIMIT) == ("120\n", "")
    usual = time.monotonic() - begun
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    for number in range(4):
        run(usual * (0.4 + 0.15 * number))
    assert run(LIMIT) == ("120\n", "")
    files = [path for path in (tmp_path / "home").rglob("*") if path.suffix == ".npz"]
    for file in files:
        with np.load(file) as arrays:
            assert len(arrays["hashes"]) == 120


@pytest.mark.slow
def test_two_processes_keep_the_same_folder(tmp_path):
    folder = make_classes(tmp_path / "photos", "ab", {".": 40}, side=100)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-c", READ, str(folder)]
    both = [
        subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=LIMIT) for process in both] == [("80\n", "")] * 2
