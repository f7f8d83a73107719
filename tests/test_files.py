"""Files and directories are put in place whole: whatever else writes there, whatever ends the writer."""

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest
from filelock import FileLock, Timeout
from helpers import ROOT

from pydmobilenet import fetching, files
from pydmobilenet.errors import UnusableError

KILLED = """
import os, signal, sys
from pathlib import Path
from pydmobilenet import files

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    files.write(Path(sys.argv[1]), "half")
with files.new_directory(Path(sys.argv[1])) as part:
    files.write(part / "file", "half")
"""


def failing(error):
    def fail(*_):
        raise error

    return fail


def names(directory):
    return sorted(os.listdir(directory))


def in_threads(number, work):
    """Run `work` in so many threads, which begin together; what each has returned or raised."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(index):
        barrier.wait()
        try:
            results[index] = work(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_writers_of_one_file_never_fail_nor_mix(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(6)]

    def work(number):
        for _ in range(20):
            files.write(tmp_path / "file", contents[number])
            assert (tmp_path / "file").read_bytes() in contents

    assert in_threads(len(contents), work) == [None] * len(contents)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("own", ["file.part", ".file.part", "file.12345678.part", ".other.part"])
def test_keep_a_users_file(own, tmp_path):
    (tmp_path / own).write_text("mine")
    files.write(tmp_path / "file", "content")
    assert (tmp_path / own).read_text() == "mine"
    assert names(tmp_path) == sorted(["file", own])


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_killed_writer_leaves_the_target_as_it_was(kind, tmp_path):
    (tmp_path / "file").write_text("old")
    target = tmp_path / ("file" if kind == "file" else "directory")
    command = [sys.executable, "-c", KILLED, target, kind]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    assert not (tmp_path / "directory").exists()
    files.write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_several_files_are_put_in_place_in_their_order_once_all_are_written(tmp_path, monkeypatch):
    placed, replace = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda part, path: placed.append((path.name, names(tmp_path))) or replace(part, path)
    )
    files.write_together({tmp_path / name: name for name in "abc"})
    assert [name for name, _ in placed] == ["a", "b", "c"]
    assert [len(there) for _, there in placed] == [3, 3, 3]
    assert names(tmp_path) == ["a", "b", "c"]


def test_write_all_files_or_none(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("old")
    with pytest.raises(UnusableError, match=f"^cannot write {tmp_path}/no/c: no such directory"):
        files.write_together({tmp_path / "a": "new", tmp_path / "no" / "c": "new", tmp_path / "b": "new"})
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["old", "old"]


def half_written(path, error):
    with files.writing(path) as file:
        file.write(b"half")
        raise error


def test_keep_the_earlier_file_on_errors(tmp_path):
    (tmp_path / "file").write_text("old")
    for error, words in (
        (ZeroDivisionError("mine"), "^mine$"),
        (UnusableError("mine"), "^mine$"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), f"^cannot write {tmp_path}/file: No space left on device$"),
    ):
        with pytest.raises((ZeroDivisionError, UnusableError), match=words):
            half_written(tmp_path / "file", error)
        assert (tmp_path / "file").read_text() == "old"
        assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_warn_of_a_file_system_without_locks(number, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", failing(OSError(number, os.strerror(number))))
    words = "has no locks|flock not supported"  # the latter is filelock's own
    with pytest.warns(UserWarning, match=words) as warned:
        files.acquire(FileLock(tmp_path / "lock"), timeout=0)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=words), fetching.locked(tmp_path / "new"):
        files.write(tmp_path / "new" / "file", "content")


def test_time_out_for_a_held_lock(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(Timeout):
        files.acquire(FileLock(tmp_path / "lock"), timeout=0)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_keep_the_mode_of_an_overwritten_file(mode, tmp_path, monkeypatch):
    path, modes = tmp_path / "file", []
    path.write_text("old")
    path.chmod(mode)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: modes.append(os.fstat(number).st_mode & 0o777) or fsync(number))
    before = os.umask(0)
    try:
        files.write(path, "new")
    finally:
        os.umask(before)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)
    assert modes[0] == mode  # of the temporary file


def test_a_read_only_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    path.chmod(0o444)
    with pytest.raises(UnusableError, match=rf"^cannot write {path}: it is read-only$"):
        files.write(path, "content")
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["file"]


def make(path, kind):
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "device"])
def test_refuse_to_replace_other_than_files(kind, link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "x"
    make(path, kind) if kind != "socket" else make(type(path)("x"), kind)
    before = path.stat().st_ino
    if link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    words = "a directory" if kind == "directory" else "a pipe, a socket or a device"
    with pytest.raises(UnusableError, match=rf"^cannot write {path}: it is {words} \(allowed: a file\)$"):
        files.write(path, "content")
    assert path.stat().st_ino == before
    assert names(tmp_path) == (["link", "x"] if link else ["x"])


def test_write_through_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/file")
    for content in ("new", "replaced"):
        files.write(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "file").read_text() == content
    assert names(tmp_path) + names(tmp_path / "far") == ["far", "link", "file"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere/file", "no such directory: "), ("loop", "Too many levels"), ("x" * 300, "too long"), ("x\0", "null")],
)
def test_name_an_impossible_path(name, words, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnusableError, match=r"(?s)^cannot write .*: .*") as caught:
        files.write(tmp_path / name, "content")
    assert words in str(caught.value)


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    for name in ("x" * 255, "\N{GRINNING FACE}" * 63):
        files.write(tmp_path / name, "content")
        assert (tmp_path / name).read_text() == "content"


def test_keep_the_first_of_concurrent_directories(tmp_path):
    def work(number):
        with files.new_directory(tmp_path / "runs" / "run") as part:
            for name in ("a", "b"):
                files.write(part / name, str(number))
        return number

    results = in_threads(8, work)
    (winner,) = [result for result in results if isinstance(result, int)]
    assert all(isinstance(result, UnusableError) for result in results if result is not winner)
    assert names(tmp_path / "runs") == ["run"]
    assert {path.name: path.read_text() for path in (tmp_path / "runs" / "run").iterdir()} == {
        "a": str(winner),
        "b": str(winner),
    }
