"""Several processes that torchrun has started train as one does."""

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
from helpers import LIMIT, MODEL, ROOT, TINY, make_folder, options, rows
from torch import distributed
from torch.nn import functional as F

from pydmobilenet.data import get_dataset
from pydmobilenet.gluon import runtime
from pydmobilenet.pytorch import trainer as pytorch_trainer
from pydmobilenet.pytorch.distributed import sync_batch_norm
from pydmobilenet.training import config, loop, schedule
from pydmobilenet.training.checkpoint import State

pytestmark = pytest.mark.pytorch

MODELS = ["resnet-11-0.25", "mobilenet-11-0.5", "pyd-add-11-0.25", "pyd-concat-11-0.25", "wrn-10-1"]
WAYS = {"float32": (1, 1), "float64": (3, 1), "accumulated": (2, 2)}  # updates, and passes of each
NO_GLUON = runtime.obstacle()
DIGITS = config.read(ROOT / "configs" / "digits.yaml")


# What a process does.


def updates(model, way):
    """Parameters, moving statistics and momentum after some updates of 32 images with mixup, and the scores."""
    number, passes = WAYS[way]
    recipe = config.make({**DIGITS, "model": model, "batch_size": 32, "accumulation_steps": passes, "mixup": 0.2})
    dataset = get_dataset("digits")
    build = pytorch_trainer.build
    if way != "float32":
        pytorch_trainer.build = lambda *arguments: build(*arguments).double()
    trainer = pytorch_trainer.make(recipe, dataset.task, torch.device("cpu"))
    pytorch_trainer.build = build
    if way != "float32":
        trainer._copied = lambda array: torch.tensor(array, dtype=torch.float64)
    rates = schedule.make(recipe, loop.updates_per_epoch(recipe, len(dataset)))
    run = loop.Loop(trainer, dataset, dataset, rates, loop.Progress(), None)
    batches = run._mixed_batches()
    scores = [trainer.train_step(*next(batches), 0.02)() for _ in range(number * passes)]
    parameters, momentum = trainer.state()
    found = {f"momentum of {name}": array for name, array in momentum.items()}
    return {**parameters, **found, "losses": np.array([s.loss for s in scores]), "wrong": scores[-1].wrong}


def all_updates(directory):
    """What a worker writes: all ways of all models, and its batch normalisation."""
    found = {f"{model} {way} {name}": a for model in MODELS for way in WAYS for name, a in updates(model, way).items()}
    rank = distributed.get_rank()
    np.savez(directory / f"{rank}.npz", **found, **normalised(rank, 2))


def normalised(rank=0, size=1):
    """The output and the gradients of a batch normalisation of this process's share, and the moving statistics."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x, slope = 3 + 2 * draw(8, 5, 4, 4), draw(8, 5, 4, 4)
    x, slope = x[rank::size].clone().requires_grad_(), slope[rank::size]
    function = sync_batch_norm if size > 1 else F.batch_norm
    found = {}
    for name, weight in (("scaled", draw(5).requires_grad_()), ("plain", None)):
        mean, variance, bias = torch.zeros(5).double(), torch.ones(5).double(), draw(5).requires_grad_()
        y = function(x, mean, variance, weight, bias, True, 0.1, 1e-5)
        x.grad = None
        (y * slope).sum().backward()
        found |= {f"{name} y": y, f"{name} of x": x.grad, f"{name} mean": mean, f"{name} variance": variance}
        found |= {f"{name} of bias": bias.grad} | ({} if weight is None else {f"{name} of weight": weight.grad})
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
def two(tmp_path_factory):
    """What each of two processes comes to."""
    directory = tmp_path_factory.mktemp("two")
    code = f"from pathlib import Path; import test_torchrun as t; t.all_updates(Path({str(directory)!r}))"
    (directory / "worker.py").write_text(code)
    with started(2, directory / "worker.py") as process:
        code, _, err = ended(process)
    assert code == 0, err
    return [dict(np.load(directory / f"{rank}.npz")) for rank in (0, 1)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_follow_one(model, way, two):
    expected = updates(model, way)
    for each in two:
        found = {name: each[f"{model} {way} {name}"] for name in expected}
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        if way == "float32":  # rounding lets some inputs of ReLUs change their sign: in the digits, whole areas at once
            names = [name for name in expected if name.endswith("weight") and "momentum" not in name]
            numbers = [np.concatenate([each[name].ravel() for name in names]) for each in (found, expected)]
            assert np.linalg.norm(numbers[0] - numbers[1]) < 0.01 * np.linalg.norm(numbers[1])
            continue
        for name, array in expected.items():
            # What no gradient reaches in exact arithmetic, as a shift that a later normalisation removes, is rounding.
            assert np.linalg.norm(found[name] - array) <= 1e-6 * max(np.linalg.norm(array), 0.1), name


def test_both_processes_have_the_same_bits(two):
    one, other = two
    assert len(one) > 1000
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


# Runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"), train=16)


def command(folder, output, **values):
    recipe = options({**TINY, "model": MODEL, "dataset": folder, **values})
    return ["train.py", *recipe, "--device", "cpu", "--output", output]


def test_the_first_process_writes_and_speaks_and_any_number_goes_on(folder, tmp_path):
    run = tmp_path / "run"
    with started(2, *command(folder, run, epochs=3, keep_every=1)) as process:
        code, out, err = ended(process)
    assert code == 0, err
    assert [line[:9] for line in out.splitlines()[:3]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert out.count("Test error after the last epoch") == 1
    assert [line.partition(":")[0] for line in err] == ["device", "data", "data"], err
    assert len(rows(run / "history.csv")) == 3
    metadata = json.loads((run / "run.json").read_text())
    assert metadata["engine"] == "pytorch"
    assert not [path for path in run.iterdir() if path.suffix == ".part"]


def test_a_run_goes_on_with_another_number_of_processes(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with started(2, *command(folder, run, epochs=4, batch_size=4)) as process:
        until(lambda: len(rows(run / "history.csv")) == 1)
        process.send_signal(signal.SIGTERM)
        _, _, err = ended(process)
    assert "train.py: interrupted; to go on: python train.py --resume" in "\n".join(err), err
    alone = subprocess.run(
        [sys.executable, "train.py", "--resume", run, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    assert len(rows(run / "history.csv")) == 4
    assert [each["device"] for each in json.loads((run / "run.json").read_text())["sessions"]] == ["cpu", "cpu"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_all_within_seconds(rank, folder, tmp_path):
    run = tmp_path / "run"
    with started(2, *command(folder, run, epochs=1000)) as process:
        until(lambda: len(rows(run / "history.csv")) >= 2)
        workers = marked(process.mark, "train.py\0")
        os.kill(next(n for n in workers if environment(n).get("RANK") == str(rank)), signal.SIGKILL)
        begun = time.monotonic()
        code, _, err = ended(process)
    assert code != 0
    assert time.monotonic() - begun < 20
    ours = err[: next(n for n, line in enumerate(err) if line.startswith("Traceback"))]  # torchrun's own report follows
    (error,) = (line for line in ours if not line.startswith(("data: ", "device: ")))
    assert error.startswith("train.py: error: PyTorch has failed: ")
    assert len(rows(run / "history.csv")) >= 2
    assert State.read(run / "last.state").progress["epochs"] >= 2


def environment(number):
    words = (Path("/proc") / str(number) / "environ").read_text().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "9"], "batch_size is 9 (allowed: a multiple of 2, for 2 worker(s) with 1 device(s) each"),
        (
            ["--device", "gpu:0"],
            "device 'gpu:0' is one for all processes of torchrun (allowed: cpu, gpu; nearest: gpu)",
        ),
        (["--engine", "gluon"], "engine 'gluon' does not know torchrun"),
    ],
)
def test_what_cannot_be_is_one_line_of_each_process(arguments, words, folder, tmp_path):
    if "gluon" in arguments and NO_GLUON:
        pytest.skip(NO_GLUON)
    with started(2, *command(folder, tmp_path / "run"), *arguments) as process:
        code, out, err = ended(process)
    assert (code, out) == (1, "")
    errors = [line for line in err if line.startswith("train.py: error: ")]
    assert errors
    assert all(words in line for line in errors)
    assert not (tmp_path / "run").exists()
