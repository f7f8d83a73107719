"""`--seeds`: a run for each seed in one directory, each in a process of its own, resumed as one."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from helpers import LIMIT, ROOT, TRAINERS, assert_same, commander, content, make_folder, options, process
from test_comparison import make_run

import pydmobilenet
from pydmobilenet.errors import InvalidValueError, UserError
from pydmobilenet.training import checkpoint, seeds

MODEL = "pyd-add-11-0.125"
RECIPE = {"model": MODEL, "epochs": 2, "warmup_epochs": 0, "batch_size": 8, "mixup": 0, "device": "cpu"}


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return commander(monkeypatch, capsys)


@pytest.fixture
def photos(tmp_path):
    make_folder(tmp_path / "photos", train=8, test=4)
    return tmp_path / "photos"


@pytest.fixture
def several(tmp_path):
    """A directory of three seeds, of which none has begun."""
    return seeds.plan({"model": MODEL, "dataset": "digits"}, "4,1,2", None, tmp_path / "several", *[None] * 4, "x")


@pytest.mark.parametrize(
    ("given", "parsed"),
    [("5", [0, 1, 2, 3, 4]), (2, [0, 1]), ("7,1,3", [7, 1, 3]), ([4, 2], [4, 2]), (range(2), [0, 1])],
)
def test_a_number_or_a_list_of_seeds(given, parsed):
    assert seeds.parse(given) == parsed


@pytest.mark.parametrize("given", ["", "1", "0", "-2", "1,1", "a", "1,", "0,-1", f"0,{2**31}", "9999", [3], 2.5, True])
def test_other_seeds_are_refused(given):
    with pytest.raises(InvalidValueError, match="a number of seeds from 2"):
        seeds.parse(given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "3", "--seed", "1"], "pass either --seed or --seeds, not both"),
        (["--jobs", "2"], "--jobs is only used with --seeds"),
        (["--seeds", "3", "--jobs", "0"], "'0' (allowed: a whole number from 1)"),
        (["--resume", "several", "--seeds", "1,2"], "several has other seeds; nearest: --seeds 4,1,2"),
        (["--resume", "several", "--epochs", "9"], "epochs is 9, but the run began with"),
        (["--resume", "several", "--output", "x"], "leave out --output"),
        (["--output", "several", "--seeds", "3", "--model", MODEL], "several exists already: pass --resume several"),
        (["--output", "several", "--resume", "auto", "--weights", "f", "--seeds", "4,1,2"], "no such"),
        (["--resume", "single", "--seeds", "3"], "single does not hold a run for each seed: leave out --seeds"),
        (["--model", "pyd-ad-29-1", "--seeds", "3"], "unknown model 'pyd-ad-29-1'; nearest: pyd-add-29-1"),
        (["--weights-dir", ".", "--seeds", "3"], "--weights-dir is only used with --weights published"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, command, several, tmp_path):
    (tmp_path / "single").mkdir()
    data = [] if "--resume" in arguments and "auto" not in arguments else ["digits"]
    code, out, err = command("train", *data, *arguments)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert not any(path.name.startswith("seed") for path in several.iterdir())


def test_torchrun_starts_no_seeds(command, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    code, _, err = command("train", "digits", "--seeds", "2")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "leave out torchrun" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "several"],
        ["info", "several"],
        ["predict", "x.png", "--weights", "several"],
        ["export", "--weights", "several", "--output", "x.onnx"],
        ["convert", "several", "x.params"],
        ["train", "digits", "--weights", "several"],
        ["train", "digits", "--model", MODEL, "--output", "several", "--resume", "auto"],
    ],
)
def test_several_runs_are_not_taken_for_one(arguments, command, several):
    code, _, err = command(*arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"several holds 3 runs: give one of them, as {os.path.join('several', 'seed-4')}" in err.replace(
        f"{several.parent}{os.sep}", ""
    )


def test_the_history_of_several_runs_is_not_that_of_one(several):
    with pytest.raises(UserError, match="holds 3 runs"):
        _ = pydmobilenet.api.Run(several).history


def test_jobs_are_as_many_as_processors_and_threads_allow(monkeypatch):
    monkeypatch.setattr(seeds.machine, "available_processors", lambda: 16)
    monkeypatch.setattr(seeds.machine, "compute_capabilities", list)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert seeds.default_jobs("auto") == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert seeds.default_jobs("cpu") == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert seeds.default_jobs("cpu") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(seeds.machine, "compute_capabilities", lambda: [(9, 0)])
    assert seeds.default_jobs("auto") == seeds.GPU_JOBS
    assert seeds.default_jobs("cpu") == 16


def test_equal_reasons_of_failures_are_one():
    error = seeds.SeedsFailed({2: "x/seed-2 is damaged", 0: "x/seed-0 is damaged", 1: "no memory"})
    assert str(error) == "seed 0, 2 failed: x/seed-N is damaged; seed 1 failed: no memory"


def test_a_start_is_not_recorded_while_another_process_trains(several, command):
    before = (several / "run.json").read_bytes()
    with checkpoint.lock(several):
        code, _, err = command("train", "--resume", several)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "another process is training in" in err
    assert (several / "run.json").read_bytes() == before


def test_a_teacher_that_has_moved_is_passed_to_the_runs(tmp_path):
    (tmp_path / "old").mkdir()
    none: list = [None] * 3
    begun = {"model": MODEL, "dataset": "digits"}
    several = seeds.plan(begun, "0,1", None, tmp_path / "several", *none, tmp_path / "old", "x")
    (tmp_path / "old").rename(tmp_path / "new")
    assert seeds.plan({}, None, None, None, several, None, None, tmp_path / "new", "y") == several
    seeds.seed_directory(several, 0).mkdir()
    processes = seeds.Processes(several, {**dict.fromkeys(seeds.OPTIONS), "engine": "pytorch"})
    for seed in (0, 1):  # begun, and not yet begun
        words = processes._command(seed)
        assert words[words.index("--teacher") + 1] == str(tmp_path / "new")


def test_runs_begun_without_a_teacher_get_none(several, command):
    code, _, err = command("train", "--resume", several, "--teacher", several)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "have teacher none" in err


def test_a_teacher_named_by_its_model_stays_the_same(tmp_path):
    teacher, other = "pyd-concat-56-0.75", "pyd-concat-56-0.5"
    several = seeds.plan({"model": MODEL}, "0,1", None, tmp_path / "several", *[None] * 3, teacher, "x")
    assert seeds.plan({}, None, None, None, several, None, None, teacher, "y") == several
    assert seeds._read(several)["teacher"] == teacher
    for wrong in (other, tmp_path / "typo.params"):
        with pytest.raises(InvalidValueError, match=f"have teacher {teacher}"):
            seeds.plan({}, None, None, None, several, None, None, wrong, "z")


# With processes


def spreads(directory):
    return json.loads((directory / "run.json").read_text())["spreads"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", TRAINERS)
def test_each_seed_is_the_run_of_that_seed(engine, photos, command, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = ["photos", *options(RECIPE), "--engine", engine]
    code, out, err = command("train", *recipe, "--seeds", "2", "--jobs", "2", "--output", "several")
    assert code == 0, err
    assert (out.count("seed 0: epoch "), out.count("seed 1: epoch ")) == (2, 2)
    assert "2 of 2 seeds are finished" in out
    code, _, err = command("train", f"{photos}", *recipe[1:], "--seed", "1", "--output", "single")
    assert code == 0, err
    assert_same(content(tmp_path / "several" / "seed-1"), content(tmp_path / "single"))
    compared = pydmobilenet.compare(tmp_path / "several")
    errors = [compared.seeds[0].results[seed].history.last.error for seed in (0, 1)]
    last = spreads(tmp_path / "several")["last"]["val"]
    assert (last["mean"], last["std"], last["n"]) == (statistics.mean(errors), statistics.stdev(errors), 2)
    assert set(spreads(tmp_path / "several")["best"]) == {"val", "test"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "several").glob("seed-*/*")}
    code, out, err = command("train", "--resume", "several")
    assert (code, err) == (0, "")
    assert "2 of 2 seeds are finished" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "several").glob("seed-*/*")} == before


@pytest.mark.slow
@pytest.mark.trains
def test_a_mistake_that_only_a_run_finds_is_one_line_and_leaves_no_directory(command, photos, tmp_path):
    code, out, err = command("train", "photos", *options({**RECIPE, "batch_size": 999}), "--seeds", "3")
    assert (code, out) == (2, "")
    *notes, last = err.splitlines()
    assert "batch_size 999" in last
    assert sum("error" in line for line in notes) == 0
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.trains
def test_a_seed_that_fails_does_not_lose_the_others(photos, several, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {key: value for key, value in RECIPE.items() if key != "device"}
    directory = seeds.plan({**recipe, "dataset": str(photos)}, "0,1,2", None, tmp_path / "r", *[None] * 4, "x")
    (directory / "seed-1").mkdir()
    (directory / "seed-1" / "run.json").write_text("{")
    with pytest.raises(UserError, match="seed 1 failed") as failed:
        pydmobilenet.train(resume=directory, device="cpu", progress=False)
    assert failed.value.exit_code == 1
    assert [seeds._finished(directory / f"seed-{seed}") for seed in range(3)] == [True, False, True]
    assert (directory / "seed-1" / "run.json").read_text() == "{"
    assert spreads(directory)["last"]["val"]["n"] == 2


def start(photos, directory, *arguments, **settings):
    recipe = {**RECIPE, "epochs": 4, "output": directory / "several", "seeds": "2", "jobs": "1", "resume": "auto"}
    return process(photos, *options(recipe), *arguments, cwd=directory, start_new_session=True, **settings)


def running(directory):
    """Return the processes that train below a directory."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if os.fsencode(directory / "several") in b"\0".join(words) and b"--seeds" not in words:
            found.append(int(pid))
    return found


@pytest.fixture
def undisturbed(photos, tmp_path):
    (tmp_path / "undisturbed").mkdir()
    started = start(photos, tmp_path / "undisturbed")
    assert started.wait(LIMIT) == 0, started.communicate()
    return [content(path) for path in seeds.directories(tmp_path / "undisturbed" / "several")]


def wait_until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.trains
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are listed in /proc on Linux alone")
def test_killed_within_and_between_seeds_the_runs_end_as_undisturbed(photos, tmp_path, undisturbed):
    several = tmp_path / "several"
    kills = [("seed-0/history.csv", signal.SIGKILL), ("seed-0", signal.SIGTERM), ("seed-1/run.json", signal.SIGKILL)]
    for place, number in kills:  # within the first seed, at once, and as soon as the second one has begun
        started = start(photos, tmp_path)
        wait_until(lambda: (several / place).exists() and running(tmp_path))  # noqa: B023  called at once
        started.send_signal(number)
        _, err = started.communicate(timeout=LIMIT)
        assert started.returncode == (143 if number == signal.SIGTERM else -number), err
        wait_until(lambda: not running(tmp_path))  # they save, and end by themselves
        if number == signal.SIGTERM:
            assert f"train.py --resume {several}" in err.splitlines()[-1]
    assert not seeds._finished(several / "seed-1")
    started = start(photos, tmp_path)
    out, err = started.communicate(timeout=LIMIT)
    assert started.returncode == 0, err
    assert "2 of 2 seeds are finished" in out
    for directory, expected in zip(seeds.directories(several), undisturbed):
        assert_same(content(directory), expected)


@pytest.mark.slow
@pytest.mark.trains
def test_two_processes_do_not_train_the_same_seeds(photos, tmp_path):
    first = start(photos, tmp_path)
    try:
        wait_until((tmp_path / "several" / "seed-0" / "run.json").exists)
        second = start(photos, tmp_path)
        _, err = second.communicate(timeout=LIMIT)
        assert second.returncode == 2
        assert "another process is training in" in err.splitlines()[-1]
    finally:
        first.terminate()
        first.communicate(timeout=LIMIT)


@pytest.mark.slow
def test_a_process_stops_with_its_parent():
    code = (
        "import time; from pydmobilenet import processes; processes.stop_with_parent()\n"
        "with processes.handle_signals(lambda number: print(number, flush=True)):\n"
        "    print('ready', flush=True); time.sleep(1.5)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), seeds.processes.WATCH: "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
    assert child.stdout.readline() == "ready\n"
    out, _ = child.communicate(timeout=LIMIT)  # closes its standard input
    assert (out, child.returncode) == (f"{int(signal.SIGTERM)}\n", 0)


def test_a_mean_needs_all_finished_runs_to_differ_by_their_seed_alone(several):
    for seed, engine in ((4, "pytorch"), (1, "pytorch"), (2, "gluon")):
        make_run(seeds.seed_directory(several, seed), [30.0, 20.0, 20.0], engine=engine, seed=seed)
    assert seeds.summary(several).endswith("They differ by more than their seed, so there is no mean.")


def test_another_engine_than_that_of_the_runs_is_refused(several):
    make_run(seeds.seed_directory(several, 4), [30.0, 20.0], engine="pytorch", seed=4)
    given = {**dict.fromkeys(seeds.OPTIONS), "engine": "gluon", "device": "cpu"}
    with pytest.raises(InvalidValueError, match="engine is 'gluon', but the runs began with 'pytorch'"):
        seeds.Processes(several, given, shown=False).run()
    assert (several / "config.yaml").exists()


@pytest.mark.parametrize("jobs", [0, -1, "2", True])
def test_jobs_in_python_are_a_whole_number(jobs, tmp_path):
    with pytest.raises(InvalidValueError, match="jobs is"):
        pydmobilenet.train(MODEL, "digits", seeds=2, jobs=jobs, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
