"""A benchmark that fails leaves nothing behind; PyTorch's compare like with like."""

import json
import os
import subprocess
import sys
import time

import oracle
import pytest
from helpers import ROOT, make_folder

sys.path.append(str(ROOT / "benchmarks"))
from server import Server

ANSWERS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as a DataLoader's workers do
for line in sys.stdin:
    if line == "fail\\n":
        raise SystemExit(1)
    print(sys.argv[2], line.strip(), child.pid, flush=True)
"""


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # what nobody has asked for yet is over too
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are listed in /proc on Linux alone")
@pytest.mark.parametrize("paused", [False, True])
def test_a_failing_benchmark_ends_all_that_it_has_started(paused, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ANSWERS)
    servers = [Server(str(script), name, environment=os.environ) for name in ("one", "other")]
    pids = [server.process.pid for server in servers]
    with servers[0] as one, servers[1] as other:
        for server in servers:
            word, question, child = server.ask("7").split()
            assert (word, question) == (server.name, "7")
            pids.append(int(child))
        assert all(map(running, pids))
        if paused:
            one.pause()
        with pytest.raises(SystemExit, match="other has failed at 'fail'"):
            other.ask("fail")
    deadline = time.monotonic() + 60
    while any(map(running, pids)):  # a process that was killed takes its time
        assert time.monotonic() < deadline
        time.sleep(0.01)


WITHOUT_MEASURING = """
import json, os, sys
sys.path.append("benchmarks")
import training

found = {"inherited": dict(os.environ)}

class Server(training.Server):
    def __init__(self, script, engine, side, environment):
        found[side] = dict(environment)
    __exit__ = pause = resume = lambda *_: None
    def ask(self, question):
        return "1"

training.Server = Server
sys.argv[1:] = ["--engine", "pytorch", "--model", "resnet-29-0.5", "--rounds", "1"]
training.main()
print(json.dumps(found))
"""


@pytest.mark.pytorch
def test_the_usual_way_of_training_has_none_of_the_package_s_settings():
    settings = ("GOMP", "KMP", "OMP", "MXNET", "DNNL", "ONEDNN")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
    command, environment = [sys.executable, "-c", WITHOUT_MEASURING], {**clean, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["eager"] == {**found["inherited"], "DNNL_MAX_CPU_ISA": "ALL", "ONEDNN_MAX_CPU_ISA": "ALL"}


@pytest.mark.pytorch
@pytest.mark.parametrize("name", oracle.FAMILIES)
def test_pytorch_as_usual_is_the_same_network(name):
    import torch
    from sides import pytorch

    net = pytorch.get_model(name)
    pytorch.trainer.set_arrays(net, oracle.random_arrays(net.description))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        found = pytorch.usual(net)(images)
    assert not [part for part in net.modules() if type(part).__name__ == "DepthwiseConv2d"]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.pytorch
@pytest.mark.parametrize(
    "part", ["speed", *(pytest.param(name, marks=pytest.mark.fuzz) for name in ("seeds", "recipe"))]
)
def test_all_that_is_measured_of_a_gpu_runs_on_a_cpu(part, tmp_path):
    make_folder(tmp_path / "pictures", classes=list(map(str, range(4))), train=40)
    small = ["--batches", "1", "--model", "pyd-add-11-0.25", "--epochs", "1", "1"]
    command = ["--part", part, "--device", "cpu", "--data", tmp_path / "pictures", "--runs", tmp_path / "runs", *small]
    answer = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *map(str, command), "--output", tmp_path / "found.jsonl"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.endswith("all is done\n")
    if part == "recipe":
        table = answer.stdout.partition("## recipe\n\n")[2].splitlines()
        assert [line.count("|") for line in table[:4]] == [8] * 4  # heading, rule and both networks
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert {row["part"] for row in found} == {part}
    assert part != "seeds" or found[-1]["what"] == "mean and spread"


@pytest.mark.pytorch
def test_a_step_that_fails_says_so_and_the_others_are_measured(monkeypatch):
    from sides import gpu_steps

    def failing():
        raise RuntimeError("no\nmemory")

    make = gpu_steps.partial(gpu_steps.BareStep, "pyd-add-11-0.125", "cpu", "float32", gpu_steps.NCHW, False)
    monkeypatch.setattr(gpu_steps, "ways", lambda *_: [("broken", False, failing), ("bare", True, make)])
    failed, row, together, *kernels = gpu_steps.rows("pyd-add-11-0.125", "cpu", 1.0, 1)
    assert failed == {"step": "broken", "failed": "RuntimeError: no memory"}
    assert 0 < row["best"] <= row["ms"]
    assert together["kernel"] == "all together"
    assert 0 < sum(kernel["ms"] for kernel in kernels) <= together["ms"] + 0.01


@pytest.mark.pytorch
def test_the_bare_step_learns():
    from sides import gpu_steps

    step = gpu_steps.BareStep("mobilenet-11-0.25", "cpu", "float32", gpu_steps.CHANNELS_LAST, False)
    before = step.net.head.dense.weight.detach().clone()
    step()
    assert not step.net.head.dense.weight.equal(before)


@pytest.mark.gluon
def test_fine_tuning_is_measured_on_images_that_neither_training_nor_the_choice_of_an_epoch_sees(weights_dir, tmp_path):
    make_folder(tmp_path, ["cat", "dog"], test=30)
    answer = subprocess.run(
        [
            *(
                sys.executable,
                "benchmarks/finetune.py",
                "--data",
                tmp_path,
                "--weights-dir",
                weights_dir,
                "--seeds",
                "2",
            ),
            *("--classes", "cat", "dog", "--number", "20", "--model", "pyd-add-29-0.25"),
            *("--ways", "finetune", "--options", "--epochs", "2", "--batch-size", "16"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in answer.stdout.splitlines()[3:]]
    assert [row[0] for row in rows] == ["finetune"]
    for _, chosen, errors, mean, deviation, epochs, _ in rows:
        assert len(chosen.split(", ")) == 2
        first, second = map(float, errors.split(", "))
        assert first % 5 == second % 5 == 0  # of 20 images
        assert float(mean) == (first + second) / 2
        assert float(deviation) == pytest.approx(abs(first - second) / 2**0.5, abs=0.005)
        assert epochs == "2, 2"
