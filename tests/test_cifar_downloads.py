"""CIFAR's official data: downloaded, verified, extracted, found again."""

import dataclasses
import hashlib
import multiprocessing
import os

import pytest
from helpers import GOOD, archive_of, split_contents

import pydmobilenet
from pydmobilenet import files
from pydmobilenet.data import cifar
from pydmobilenet.errors import BadFileError, MissingFileError, UnusableError


@pytest.fixture
def official(monkeypatch):
    """A small CIFAR-10 that counts as the official one; returns the content of its archive."""
    contents = {**split_contents(cifar.CIFAR10, "binary", "train")[0], "test_batch.bin": GOOD}
    archive = archive_of(contents, "cifar-10-batches-bin/")
    layout = dataclasses.replace(
        cifar.CIFAR10,
        digests={name: f"sha1:{hashlib.sha1(content).hexdigest()}" for name, content in contents.items()},
        archive_digests=(f"sha1:{hashlib.sha1(archive).hexdigest()}", f"md5:{hashlib.md5(archive).hexdigest()}"),
    )
    monkeypatch.setattr(cifar, "CIFAR10", layout)
    return archive


MXNET_PATH, TORONTO_PATH = "/gluon/dataset/cifar10/cifar-10-binary.tar.gz", "/cifar-10-binary.tar.gz"


@pytest.mark.parametrize("path", [MXNET_PATH, TORONTO_PATH])
def test_the_official_data_is_downloaded_once_from_whoever_has_it(path, official, server, monkeypatch, home):
    monkeypatch.setenv("MXNET_GLUON_REPO", f"{server.url}/")
    monkeypatch.setattr(cifar, "TORONTO", server.url)
    server.files[path] = official
    for split in ("test", "train", "test"):
        dataset = pydmobilenet.get_dataset("cifar10", split)
        assert dataset.official
        assert len(dataset) == (30 if split == "test" else 150)
    assert [asked for asked in server.requests if asked == path] == [path]
    folder = home / "project" / "datasets" / "cifar10"
    assert sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) == [
        *(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
    ]


def test_an_error_page_from_the_first_source_is_skipped(official, server, monkeypatch):
    monkeypatch.setenv("MXNET_GLUON_REPO", server.url)
    monkeypatch.setattr(cifar, "TORONTO", server.url)
    server.files[MXNET_PATH] = b"<html>gone</html>"
    server.files[TORONTO_PATH] = official
    assert pydmobilenet.get_dataset("cifar10", "test").official


def _download(url, home, digests, archive_digests, answers):
    os.environ.update(PYDMOBILENET_HOME=str(home), MXNET_GLUON_REPO=url)
    cifar.CIFAR10 = dataclasses.replace(cifar.CIFAR10, digests=digests, archive_digests=archive_digests)
    answers.put(len(pydmobilenet.get_dataset("cifar10", "test")))


def test_two_processes_at_once_download_once(official, server, tmp_path):
    server.files[MXNET_PATH] = official
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    layout = cifar.CIFAR10
    arguments = (server.url, tmp_path, layout.digests, layout.archive_digests, answers)
    processes = [context.Process(target=_download, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [30, 30]
    for process in processes:
        process.join()
    assert len(server.requests) == 1


def test_advise_offline(home):
    with pytest.raises(MissingFileError) as caught:
        pydmobilenet.get_dataset("cifar10", "test")
    for part in ("the test images of CIFAR-10", f"{home}/mxnet/datasets/cifar10", "refused", "cifar-10-binary.tar.gz"):
        assert part in str(caught.value)


@pytest.mark.parametrize("after", range(6))
def test_repeat_an_interrupted_extraction(after, official, server, monkeypatch, home):
    monkeypatch.setenv("MXNET_GLUON_REPO", server.url)
    server.files[MXNET_PATH] = official
    writes = []
    real = files.write

    def interrupted(path, content):
        writes.append(path)
        if len(writes) > after:
            raise KeyboardInterrupt
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pydmobilenet.get_dataset("cifar10", "train")
    assert len(pydmobilenet.get_dataset("cifar10", "train")) == 150
    assert len(server.requests) == 1


def test_name_an_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "test_batch.bin").write_bytes(GOOD)
    monkeypatch.setattr(
        "builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UnusableError, match=f"cannot read {tmp_path}/test_batch.bin: Permission denied"):
        pydmobilenet.get_dataset("cifar10", "test", tmp_path)


@pytest.mark.parametrize("place", ["project", "mxnet"])
def test_find_the_official_data_at_home(place, official, home):
    folder = home / place / "datasets" / "cifar10"
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(GOOD)
    assert pydmobilenet.get_dataset("cifar10", "test").official


def test_use_unofficial_data_only_from_a_given_directory(official, home):
    folder = home / "mxnet" / "datasets" / "cifar10"
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(GOOD[: 3073 * 20])
    with pytest.raises(BadFileError, match=r"test_batch\.bin is not the official file of CIFAR-10"):
        pydmobilenet.get_dataset("cifar10", "test")
    assert not pydmobilenet.get_dataset("cifar10", "test", folder).official


def test_name_a_home_without_write_access(official, server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYDMOBILENET_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("MXNET_GLUON_REPO", server.url)
    server.files[MXNET_PATH] = official
    with pytest.raises(UnusableError, match=f"cannot write {tmp_path}/file"):
        pydmobilenet.get_dataset("cifar10", "test")
