"""Several processes that torchrun has started train as one does."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LIMIT, MODEL, ROOT, TINY, content, make_folder, options, process, rows
from torch import distributed

import pydmobilenet
from pydmobilenet import engine
from pydmobilenet.data import Splits, get_dataset
from pydmobilenet.errors import UnusableError
from pydmobilenet.gluon import runtime
from pydmobilenet.pytorch import devices
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.pytorch.distributed import CPUSyncBatchNorm
from pydmobilenet.training import config, distillation, loop, session
from pydmobilenet.training.checkpoint import State

pytestmark = pytest.mark.pytorch

MODELS = ["resnet-11-0.25", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"]
WAYS = {"float32": (1, 1), "float64": (3, 1), "accumulated": (2, 2), "taught": (2, 2)}  # updates, and passes of each
TAUGHT = {"clip_gradient": 0.5}  # with a teacher, in float32
CASES = [*((model, "float64") for model in MODELS), ("resnet-11-0.25", "float32"), ("pyd-concat-11-0.25", "float32")]
CASES += [("pyd-concat-11-0.25", "accumulated"), ("pyd-add-11-0.25", "taught")]
CPU = torch.device("cpu")
DIGITS = config.read(ROOT / "configs" / "digits.yaml")


# What a process does.


def updates(model, way):
    """Parameters, moving statistics, momentum and averages after updates of 32 mixed images, and the scores."""
    number, passes = WAYS[way]
    values = {**DIGITS, "model": model, "batch_size": 32, "accumulation_steps": passes, "mixup": 0.2, "cutmix": 1}
    values.update(cutout=2, ema=0.5)
    recipe = config.make({**values, **(TAUGHT if way == "taught" else {})})
    dataset = get_dataset("digits")
    teacher = distillation.find("pyd-add-29-0.25", recipe, dataset.task) if way == "taught" else None
    build = pytorch_trainer.build
    single = way in ("float32", "taught")
    if not single:
        pytorch_trainer.build = lambda *arguments: build(*arguments).double()
    trainer = pytorch_trainer.make(recipe, dataset.task, CPU, teacher=teacher)
    pytorch_trainer.build = build
    if not single:
        trainer._empty = lambda shape: torch.empty(shape, dtype=torch.float64)
    run = loop.Loop(trainer, Splits(dataset, None, dataset), loop.Progress(), Path(), None)
    batches = run.loader.epoch(0)
    scores = [trainer.train_step(*next(batches), 0.02)() for _ in range(number * passes)]
    parameters, momentum = trainer.state()
    found = {f"momentum of {name}": array for name, array in momentum.items()}
    return {**parameters, **found, "losses": np.array([s.loss for s in scores]), "wrong": scores[-1].wrong}


def evaluated(number):
    """The score of an untrained network on so many images."""
    dataset = get_dataset("digits", "test").head(number)
    trainer = pytorch_trainer.make(config.make({**DIGITS, "model": MODEL}), dataset.task, CPU)
    return np.array(trainer.evaluate(dataset)[:4])


def trained(directory, folder):
    """What is in the directory of a run as soon as its training is over."""
    draw = loop.draw
    loop.draw = lambda *_: time.sleep(1)  # the first process is the last to be done
    values = {**TINY, "model": MODEL, "dataset": folder, "epochs": 1, "warmup_epochs": 0, "mixup_off_epochs": 0}
    run = pydmobilenet.train(**values, output=directory / "run", device="cpu", progress=False)
    loop.draw = draw
    return sorted(path.name for path in run.directory.iterdir()), len(run.history.rows)


def work(directory, folder):
    """What a worker writes: all cases, its batch normalisation, scores, and what it sees of a run."""
    found = {f"{model} {way} {name}": a for model, way in CASES for name, a in updates(model, way).items()}
    rank = distributed.get_rank()
    scores = {f"score of {number}": evaluated(number) for number in (1, 7)}
    np.savez(directory / f"{rank}.npz", **found, **normalised(rank, 2), **scores)
    (directory / f"{rank}.json").write_text(json.dumps(trained(directory, folder)))


def normalised(rank=0, size=1):
    """The output and the gradients of a batch normalisation of this process's share, and the moving statistics."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x, slope = 3 + 2 * draw(8, 5, 4, 4), draw(8, 5, 4, 4)
    x, slope = x[rank::size].clone().requires_grad_(), slope[rank::size]
    kind = CPUSyncBatchNorm if size > 1 else torch.nn.BatchNorm2d
    found = {}
    for name, scaled in (("scaled", True), ("plain", False)):
        norm = kind(5).double()
        norm.weight.data, norm.bias.data = draw(5) if scaled else torch.ones(5).double(), draw(5)
        norm.weight.requires_grad_(scaled)
        y = norm(x)
        x.grad = None
        (y * slope).sum().backward()
        found |= {f"{name} y": y, f"{name} of x": x.grad, f"{name} of bias": norm.bias.grad}
        found |= {f"{name} mean": norm.running_mean, f"{name} variance": norm.running_var}
        found |= {f"{name} of weight": norm.weight.grad} if scaled else {}
    return {f"norm {name}": array.detach().numpy().copy() for name, array in found.items()}


# Processes.


@contextmanager
def started(size, *command, **settings):
    """torchrun with so many processes, in a group of its own; none is left at the end."""
    mark = str(uuid.uuid4())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size]
    process = subprocess.Popen(
        [sys.executable, *map(str, [*launch, *command])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **settings,
    )
    process.mark = mark
    try:
        yield process
    finally:
        for number in [process.pid, *marked(mark)]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.communicate()


def marked(mark, word=""):
    """The processes of this machine that have the mark, and a word in their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (place / "environ").read_bytes() and word in (place / "cmdline").read_text():
                found.append(int(place.name))
    return sorted(found)


def ended(process):
    """Exit code, standard output and standard error of torchrun, which has left no process behind."""
    out, err = process.communicate(timeout=LIMIT)
    assert marked(process.mark) == []
    return process.returncode, out, own_lines(err)


def own_lines(err):
    """What the workers have written themselves: torchrun's own lines begin with a letter and a date."""
    lines = [line for line in err.splitlines() if line[:1] not in "WEI" or not line[1:5].isdigit()]
    return [line for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=16)


@pytest.fixture(scope="module")
def worked(tmp_path_factory, folder):
    """The directory that two processes have written to."""
    directory = tmp_path_factory.mktemp("two")
    code = f"from pathlib import Path; import test_torchrun as t; t.work(Path({str(directory)!r}), {folder!r})"
    (directory / "worker.py").write_text(code)
    with started(2, directory / "worker.py") as torchrun:
        code, out, err = ended(torchrun)
    assert (code, out, err) == (0, "", [])
    return directory


@pytest.fixture(scope="module")
def two(worked):
    """What each of two processes comes to."""
    return [dict(np.load(worked / f"{rank}.npz")) for rank in (0, 1)]


@pytest.mark.parametrize(("model", "way"), CASES)
def test_two_processes_follow_one(model, way, two):
    expected = updates(model, way)
    for each in two:
        found = {name: each[f"{model} {way} {name}"] for name in expected}
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-4 if way == "taught" else 1e-5)
        if way in (
            "float32",
            "taught",
        ):  # rounding lets some inputs of ReLUs change their sign: in the digits, whole areas at once
            names = [name for name in expected if name.endswith("weight") and "momentum" not in name]
            numbers = [np.concatenate([each[name].ravel() for name in names]) for each in (found, expected)]
            assert np.linalg.norm(numbers[0] - numbers[1]) < 0.01 * np.linalg.norm(numbers[1])
            continue
        for name, array in expected.items():
            # What no gradient reaches in exact arithmetic, as a shift that a later normalisation removes, is rounding.
            assert np.linalg.norm(found[name] - array) <= 1e-6 * max(np.linalg.norm(array), 0.1), name


def test_both_processes_have_the_same_bits(two):
    one, other = two
    assert len(one) > 500
    assert [name for name in one if "norm " not in name and one[name].tobytes() != other[name].tobytes()] == []


def test_a_batch_is_normalised_as_a_whole(two):
    expected = normalised()
    shares = {"y", "of x"}
    for name, array in expected.items():
        parts = [found[name] for found in two]
        if name.split(" ", 2)[2] in shares:
            whole = np.empty_like(array)
            whole[0::2], whole[1::2] = parts
        else:  # each has its share of a parameter's gradient, and the statistics of the whole
            whole = sum(parts) if " of " in name else parts[0]
        np.testing.assert_allclose(whole, array, rtol=1e-12, atol=1e-12, err_msg=name)


def test_a_data_set_may_have_fewer_images_than_there_are_processes(two):
    for number in (1, 7):
        for found in two:
            np.testing.assert_allclose(found[f"score of {number}"], evaluated(number), rtol=1e-5)


def test_train_in_python_gives_every_process_the_finished_run(worked):
    one, other = (json.loads((worked / f"{rank}.json").read_text()) for rank in (0, 1))
    files = [".lock", "best.params", "config.yaml", "history.csv", "last.params", "last.state", "run.json"]
    assert one == other == [files, 1]


# Runs.


def command(folder, output, **values):
    recipe = options({**TINY, "model": MODEL, "dataset": folder, **values})
    return ["train.py", *recipe, "--device", "cpu", "--output", output]


def until_epoch(number, run):
    deadline = time.monotonic() + LIMIT
    while len(rows(run / "history.csv")) < number:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(torchrun):
    """The processes that torchrun has started, by their number."""
    found = {}
    for number in marked(torchrun.mark, "train.py\0"):
        words = (Path("/proc") / str(number) / "environ").read_text().split("\0")
        ranks = [word for word in words if word.startswith("RANK=")]
        found |= dict.fromkeys(ranks, number)
    return [found[f"RANK={rank}"] for rank in (0, 1)]


def alone(recipe, output):
    """A run of this process."""
    make = functools.partial(pytorch_trainer.make, device=CPU)
    with session.opened(session.Session(recipe, output, progress=False), make) as run:
        assert run.run() == 0


def test_a_run_goes_on_with_any_number_of_processes_and_the_first_one_writes_and_speaks(folder, tmp_path):
    run = tmp_path / "run"
    with started(2, *command(folder, run, epochs=5)) as torchrun:
        until_epoch(1, run)
        for number in [*workers(torchrun), torchrun.pid]:  # as a cluster does; torchrun hands it on once more
            os.kill(number, signal.SIGTERM)
        _, out, err = ended(torchrun)
    notes = ["Training", "data", "data", "data"]
    (interrupted,) = (line for line in own_part(err) if line.partition(" ")[0].rstrip(":") not in [*notes, "weights"])
    assert interrupted == f"train.py: interrupted; to go on: python train.py --resume {run}"
    assert len(out.splitlines()) == len(rows(run / "history.csv"))

    single = process("--resume", run, "--device", "cpu")
    until_epoch(len(rows(run / "history.csv")) + 1, run)
    single.terminate()
    out, err = single.communicate(timeout=LIMIT)
    assert single.returncode == 143, err

    with started(2, "train.py", "--resume", run, "--device", "cpu") as torchrun:
        code, out, err = ended(torchrun)
    assert code == 0, "\n".join(err)
    assert [line.partition(" ")[0].rstrip(":") for line in err] == [*notes, "resuming"]
    epochs = [line.split()[1] for line in out.splitlines() if line.startswith("epoch ")]
    assert epochs == [f"{number}/5" for number in range(6 - len(epochs), 6)]
    assert out.count("Test error of epoch") == 1

    alone(session.read_config(run), tmp_path / "alone")
    found, expected = content(run), content(tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert {path.name for path in run.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        assert name in ("progress", "config", "metadata") or len(found[name]) == len(value), name
    assert {**found["metadata"], "checkpoints": 0} == {**expected["metadata"], "checkpoints": 0}


def own_part(err):
    """The lines before torchrun's own report."""
    return err[: next((n for n, line in enumerate(err) if line.startswith("Traceback")), None)]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.fuzz), 1, "torchrun"])
def test_one_that_is_killed_ends_all_within_seconds(victim, folder, tmp_path):
    run = tmp_path / "run"
    with started(2, *command(folder, run, epochs=1000)) as torchrun:
        until_epoch(1, run)
        os.kill(torchrun.pid if victim == "torchrun" else workers(torchrun)[victim], signal.SIGKILL)
        begun = time.monotonic()
        code, _, err = ended(torchrun)
    assert code != 0
    assert time.monotonic() - begun < 15
    errors = [line for line in own_part(err) if not line.startswith(("data: ", "Training on ", "weights: "))]
    if victim == "torchrun":
        assert errors == []
    else:
        (error,) = errors
        assert error.startswith("train.py: error: PyTorch has failed: ")
        assert error.endswith(" (another process of this training has ended)")
    assert State.read(run / "last.state").progress["epochs"] >= 1


def test_a_new_run_goes_on_where_torchrun_starts_all_again_after_one_was_killed(folder, tmp_path):
    run = tmp_path / "run"
    with started(2, "--max-restarts", 1, *command(folder, run, epochs=5)) as torchrun:
        until_epoch(1, run)
        os.kill(workers(torchrun)[1], signal.SIGKILL)
        code, out, err = ended(torchrun)
    assert code == 0, "\n".join(err)
    (resuming,) = (line for line in err if line.startswith("resuming "))
    assert int(resuming.split()[3]) >= 1  # epoch
    assert len(rows(run / "history.csv")) == 5
    assert out.count("Test error of epoch") == 1
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 2


def test_a_batch_that_cannot_be_shared_out_is_one_line(folder, tmp_path):
    with started(2, *command(folder, tmp_path / "run", batch_size=9)) as torchrun:
        code, out, err = ended(torchrun)
    assert (code, out) == (1, "")
    (error,) = (line for line in own_part(err) if not line.startswith(("data: ", "Training on ", "weights: ")))
    words = "batch_size is 9 (allowed: a multiple of 2, for 2 worker(s) with 1 device(s) each; nearest: 8)"
    assert error == f"train.py: error: {words}"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def launched(monkeypatch):
    """This process is the second of two that torchrun has started."""
    values = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def refused(words, *arguments):
    with pytest.raises(UnusableError) as caught:
        engine.choose(*arguments, "training")
    assert str(caught.value) == words


def test_torchrun_is_pytorch_s(launched):
    assert engine.choose(device="cpu", purpose="training").reason == "Gluon does not support torchrun"


@pytest.mark.skipif(bool(runtime.obstacle()), reason=runtime.obstacle())
def test_gluon_refuses_torchrun(launched):
    words = "engine 'gluon' does not support torchrun; nearest: pytorch"
    refused(words, "gluon", "cpu")


def test_processes_do_not_share_a_gpu(launched, monkeypatch):
    one = "device 'gpu:0': torchrun's processes need one each (allowed: cpu, gpu; nearest: gpu)"
    refused(one, "pytorch", "gpu:0")
    monkeypatch.setattr(devices, "device_obstacle", lambda kind, number: f"there is no GPU {number}" if number else "")
    few = "2 processes of torchrun on this machine: there is no GPU 1; nearest: --device cpu"
    refused(few, "pytorch", "gpu")
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first one says so too
    refused(few, "pytorch", "gpu")


def test_several_processes_do_not_share_apple_s_gpu(launched, monkeypatch):
    refused("device 'mps': torchrun's processes need one GPU each; nearest: --device cpu", "pytorch", "mps")
