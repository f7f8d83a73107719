"""Images of a folder that cannot be read: train.py and run_validation.py name them, or skip them on request."""

import pytest
from helpers import DIGITS, MODEL, TINY, assert_mistake, commander, make_folder, options, runner

from pydmobilenet.training.loop import Loop

pytestmark = pytest.mark.gluon

ADVICE = "; --skip-bad (in Python, skip_bad=True) goes on without it"
inside = pytest.fixture(runner)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of four classes, one of which has a bad image for training and one for the test."""
    folder = tmp_path_factory.mktemp("data")
    make_folder(folder)
    for split in ("train", "test"):
        (folder / split / "a" / "bad.png").write_bytes(b"no image")
    return folder


def recipe(data):
    return [
        "--config",
        DIGITS,
        *options(
            {
                **TINY,
                "epochs": 1,
                "warmup_epochs": 0,
                "mixup_off_epochs": 0,
                "model": MODEL,
                "dataset": f"folder:{data}",
            }
        ),
    ]


def test_a_bad_image_ends_a_run_before_it_begins(data, tmp_path, inside):
    answer = inside(*recipe(data), "--output", tmp_path / "run")
    assert_mistake(answer, "train/a/bad.png cannot be read as an image")
    assert answer.stderr.rstrip().endswith(ADVICE)
    assert not (tmp_path / "run").exists()


def test_bad_images_are_skipped_on_request_in_training_and_validation(data, tmp_path, monkeypatch, capsys, inside):
    run = tmp_path / "run"

    def skipping(*arguments):
        with pytest.warns(UserWarning, match="skipped") as warned:
            answer = inside(*arguments)
        told = [str(each.message) for each in warned if each.category is UserWarning]
        assert [text.split(" cannot be read as an image")[0] for text in told] == [
            f"{data}/{split}/a/bad.png" for split in ("train", "test")
        ]
        assert f"data: {data}/train: 40 images (a 10, b 10, c 10, d 10)\n" in answer.stderr
        assert f"data: {data}/test: 24 images (a 6, b 6, c 6, d 6)\n" in answer.stderr
        return answer.returncode

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", lambda self: 143)  # interrupted at once
        assert skipping(*recipe(data), "--output", run, "--skip-bad") == 143
    assert skipping("--resume", run) == 0

    validate = commander(monkeypatch, capsys)
    with pytest.warns(UserWarning, match="test/a/bad.png cannot be read as an image.*: skipped"):
        code, _, err = validate("validate", run, "--device", "cpu")  # the run records that it skips them
    assert code == 0, err
    assert f"data: {data}/test: 24 images (a 6, b 6, c 6, d 6)\n" in err
