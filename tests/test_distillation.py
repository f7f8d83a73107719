"""A student learns from a teacher: its loss, what the teacher sees, and how a run finds its teacher again."""

import functools
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from helpers import MODEL, TINY, assert_mistake, assert_same, content, make_folder, options, runner

import pydmobilenet
from pydmobilenet import cli, engine
from pydmobilenet.data import get_task
from pydmobilenet.metrics import softmax
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.pytorch.inference import PyTorchEngine
from pydmobilenet.training import config, distillation
from pydmobilenet.training.loop import Loop

pytestmark = [pytest.mark.pytorch, pytest.mark.trains]
CPU = torch.device("cpu")
TEACHER = "pyd-concat-29-0.25"  # bundled, for the digits
start = functools.partial(pydmobilenet.train, device="cpu", engine="pytorch", progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    """A run on the same pictures, normalised in its own way."""
    output = tmp_path_factory.mktemp("runs") / "teacher"
    run = start("mobilenet-11-0.25", folder, output=output, **{**TINY, "epochs": 1, "warmup_epochs": 0, "mixup": 0})
    metadata = json.loads((output / "run.json").read_text())
    metadata.update(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.1])
    (output / "run.json").write_text(json.dumps(metadata))
    return run.directory


@pytest.fixture(scope="module")
def student(teacher, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "student"
    return start(MODEL, folder, output=output, teacher=teacher, **{**TINY, "epochs": 2}).directory


@pytest.fixture
def inside(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


def test_the_loss_is_that_of_the_paper_on_the_batch_in_the_teacher_s_own_normalisation(teacher, folder):
    task = get_task(folder, 32)
    values = {"model": MODEL, "dataset": folder, **TINY, "teacher_share": 0.7, "temperature": 3}
    recipe = config.make(values)
    found = distillation.find(teacher, recipe, task)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 3, 32, 32)) / 255
    mean, std = (np.array(values)[:, None, None] for values in (task.mean, task.std))
    x = ((pixels - mean) / std).astype(np.float32)
    mixed = rng.dirichlet([1] * 4, 8) * rng.uniform(0.5, 2, (8, 1))  # mixup, and the weights of classes
    plain, taught = (pytorch_trainer.make(recipe, task, CPU, teacher=of) for of in (None, found))
    with torch.no_grad():
        student = plain.net(torch.tensor(x)).numpy()
    own = np.array([0.4, 0.5, 0.6])[:, None, None], np.array([0.2, 0.3, 0.1])[:, None, None]
    soft = PyTorchEngine("cpu").load(found.network, found.arrays())(((pixels - own[0]) / own[1]).astype(np.float32))
    hard = -(mixed * np.log(softmax(student))).sum(axis=1)
    p, q = softmax(soft / 3), softmax(student / 3)
    divergence = (p * np.log(p / q)).sum(axis=1)
    expected = 0.3 * hard + 0.7 * 3**2 * mixed.sum(axis=1) * divergence
    targets = mixed.astype(np.float32)
    assert plain.train_step(x, targets, 0.1)().loss == pytest.approx(hard.sum(), rel=1e-4)
    assert taught.train_step(x, targets, 0.1)().loss == pytest.approx(expected.sum(), rel=1e-4)
    assert divergence.sum() > 1e-3
    before, after = (each.state()[0]["head.dense.weight"] for each in (plain, taught))
    assert not np.array_equal(before, after)


def test_a_student_records_its_teacher_and_what_that_has_seen(student, teacher, capsys, monkeypatch):
    metadata, of_teacher = (json.loads((run / "run.json").read_text()) for run in (student, teacher))
    assert metadata["teacher"] == {
        "model": "mobilenet-11-0.25",
        "source": str(teacher / "best.params"),
        "sha256": of_teacher["checkpoints"]["best.params"]["sha256"],
    }
    assert set(of_teacher["seen_images"].split()) <= set(metadata["seen_images"].split())
    monkeypatch.setattr("sys.argv", ["pydmobilenet", "info", str(student)])
    with pytest.raises(SystemExit):
        cli.main("")
    assert f"teacher: mobilenet-11-0.25, {teacher / 'best.params'}, SHA-256 " in capsys.readouterr().out


def interrupted(monkeypatch, *arguments, **values):
    """Train until a signal comes in the first epoch."""
    step = Loop._show_pace
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_show_pace", lambda self, bar: (self._stop(signal.SIGTERM), step(self, bar)))
        with pytest.raises(KeyboardInterrupt):
            start(*arguments, **values)


def test_an_interrupted_student_finds_its_teacher_and_goes_on_to_the_same_bits(
    student, teacher, folder, tmp_path, monkeypatch, inside
):
    moved, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher, moved)
    interrupted(monkeypatch, MODEL, folder, output=run, teacher=moved, **{**TINY, "epochs": 2})
    shutil.move(moved, tmp_path / "elsewhere")
    words = f"the run's teacher has moved from {moved / 'best.params'}: add --teacher with its new path"
    assert_mistake(inside("--resume", run), words)
    assert_mistake(inside("--resume", run, "--teacher", student), "is not the teacher of this run, by its SHA-256")
    answer = inside("--resume", run, "--teacher", tmp_path / "elsewhere", "--quiet", "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    found, expected = content(run), content(student)
    assert found["metadata"].pop("teacher")["sha256"] == expected["metadata"].pop("teacher")["sha256"]
    assert_same(found, expected)


def test_resume_auto_keeps_to_the_teacher_that_the_run_began_with(student, teacher, folder, inside):
    same = [folder.partition(":")[2], "--model", MODEL, *options({**TINY, "epochs": 2})]
    same += ["--resume", "auto", "--output", student, "--device", "cpu"]
    assert inside(*same, "--teacher", teacher).returncode == 0
    assert_mistake(inside(*same), "add --teacher")
    assert_mistake(inside("--resume", teacher, "--teacher", student), "the run began without a teacher")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["--teacher", TEACHER, "--engine", "gluon"],
            "engine 'gluon' has no distillation (--teacher); nearest: pytorch",
            marks=pytest.mark.gluon,
        ),
        (["--teacher", "pyd-concat-29"], "no such teacher: pyd-concat-29 is no path, and "),
        (["--teacher", "resnet-56-0.25"], "no weights of resnet-56-0.25 are published for digits"),
        (["--temperature", "2"], "temperature 2 cannot be used: there is no teacher: add --teacher"),
        (["--teacher-share", "0.5"], "teacher_share 0.5 cannot be used: there is no teacher"),
        (["--teacher", TEACHER, "--pretrained", "--freeze"], "a teacher sees images, and a last layer alone"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, words, tmp_path, inside):
    answer = inside("--dataset", "digits", "-m", "pyd-add-29-0.25", "--output", tmp_path / "run", *arguments)
    assert_mistake(answer, words)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_sizes_or_that_has_seen_the_test_images_is_refused(
    teacher, folder, tmp_path, inside
):
    other = make_folder(tmp_path / "other", "abce").partition(":")[2]
    swapped = tmp_path / "swapped"
    for split, of in (("train", "test"), ("test", "train")):
        shutil.copytree(f"{folder.partition(':')[2]}/{of}", swapped / split)
    for data, more, words in (
        (other, (), "has other classes: number 3 is d, and e in the data"),
        (folder.partition(":")[2], ("--image-size", "16"), "of 32 pixels, the run of 16; nearest: --image-size 32"),
        (swapped, (), "was trained on 40 of the 40 test images, or chosen by them: pass other weights or test images"),
    ):
        answer = inside(data, "-m", MODEL, "--teacher", teacher, "--output", tmp_path / "run", *options(TINY), *more)
        assert_mistake(answer, words)


def test_with_a_teacher_auto_is_pytorch():
    choice = engine.choose("auto", "cpu", "training", "pyd-add", distilled=True)
    assert choice.name == "pytorch"


def test_a_teacher_may_be_named_by_its_model():
    recipe = config.make({"model": "pyd-add-29-0.25", "dataset": "digits"})
    task = get_task("digits")
    assert distillation.find(TEACHER, recipe, task).path.name == f"digits-{TEACHER}.params"
    assert distillation.find("published", recipe, task).model == "pyd-add-29-0.25"
