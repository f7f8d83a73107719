"""What the README says is what happens: each of its commands is run here, or by a test that is named here."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from helpers import NOWHERE, ROOT

from pydmobilenet.cli import COMMANDS as COMMANDS_OF_THE_CLI

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
SHELL = "".join(text for language, text in BLOCKS if not language)
LINES = [line.partition("  #")[0].strip() for line in SHELL.splitlines()]
COMMANDS = [line for line in LINES if line.startswith(("python ", "pydmobilenet ", "make ", "pip ", "torchrun "))]
INLINE = [
    text
    for text in re.findall(r"`((?:OMP_NUM_THREADS=1 )?(?:python|pydmobilenet) [^`]+)`", README)
    if "..." not in text
]

# Commands that need minutes, a network, or files of the reader's, and the test that runs their like.
ELSEWHERE = {
    "make validate": "test_commands.py::test_offline_the_bundled_checkpoints_are_checked_and_all_else_has_its_reason",
    "make test": "test_processor.py::test_the_tests_run_at_the_processor_s_own_level_and_at_each_lower_one",
    "pip install '.": "test_readme.py::test_what_is_installed_on_request_can_be_had",
    "pip install .": "test_wheel.py::test_from_a_wheel_everything_works_in_an_empty_directory",
    "pydmobilenet validate": "test_wheel.py::test_from_a_wheel_everything_works_in_an_empty_directory",
    "pydmobilenet train": "test_train_command.py::test_last_and_best_and_every_second_epoch_are_kept",
    "pydmobilenet predict PHOTOS": "test_predict.py::test_a_folder_of_images_is_classified",
    "pydmobilenet fetch": ("test_front_door.py::test_files_are_fetched_from_a_server_and_what_is_missing_is_said"),
    "pydmobilenet info": "test_front_door.py::test_a_network_s_layers_add_up",
    "pydmobilenet convert": "test_commands.py::test_a_checkpoint_is_converted",
    "pydmobilenet export": "test_onnx.py::test_the_readme_s_lines_classify_an_image_without_mxnet",
    "python run_validation.py --engine onnxruntime": "test_commands.py::test_every_engine_gives_the_same_table",
    "python run_validation.py --run": "test_trained.py::test_a_run_is_validated_like_a_row_of_the_tables",
    "python run_validation.py --data-dir DIR": "test_commands.py::test_real_images_and_weights_give_the_table",
    "python run_validation.py --dataset cifar10": "test_commands.py::test_real_images_and_weights_give_the_table",
    "python run_validation.py": (
        "test_commands.py::test_offline_the_bundled_checkpoints_are_checked_and_all_else_has_its_reason"
    ),
    "torchrun --nproc-per-node": (
        "test_torchrun.py::test_a_run_goes_on_with_any_number_of_processes_and_the_first_one_writes_and_speaks"
    ),
    "torchrun --nnodes": "test_torchrun.py::test_two_processes_follow_one",
    "python train.py --resume": "test_resume.py::test_killed_at_three_random_moments_a_run_ends_with_the_same_bits",
    "python train.py": "test_train_command.py::test_last_and_best_and_every_second_epoch_are_kept",
    "OMP_NUM_THREADS=1 python train.py --dataset digits": "test_trained.py::test_a_bundled_network_is_trained_again",
    "python benchmarks/": "test_readme.py::test_help_is_there_and_fits",  # figures: by hand, on a quiet machine
    "python pretrained/reproduce.py": "test_trained.py::test_a_bundled_network_is_trained_again",
}
# What is run here, and what of it stands in the README.
HERE = {
    "pydmobilenet predict examples/digits --model pyd-add-29-0.25 --dataset digits": "stdout",
    "pydmobilenet list 'pyd-add-*'": "",
    "pydmobilenet info pyd-concat-56-0.5": "",
    "pydmobilenet show --dataset digits --output grid.png": "",
}
ENTRIES = [
    *("run_validation.py", "train.py", "-m pydmobilenet"),
    *(f"-m pydmobilenet {name}" for name in COMMANDS_OF_THE_CLI),
    *(f"benchmarks/{path.name}" for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem != "server"),
    "pretrained/reproduce.py",
]


def run(command, **settings):
    command = re.sub("^pydmobilenet ", "-m pydmobilenet ", command)
    environment = {**os.environ, "COLUMNS": "100", "HTTPS_PROXY": NOWHERE, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    settings = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, **settings}
    return subprocess.run([sys.executable, *shlex.split(command)], **settings)


def entry_of(command):
    """The longest key of `ELSEWHERE` that a command begins with."""
    return max((key for key in ELSEWHERE if command.startswith(key)), key=len, default=None)


@pytest.mark.parametrize("command", dict.fromkeys([*COMMANDS, *INLINE]))
def test_every_command_is_tested_somewhere(command):
    assert command in HERE or entry_of(command), f"no test is named for {command!r}"


@pytest.mark.parametrize("key", ELSEWHERE)
def test_a_test_that_is_named_for_a_command_is_there(key):
    assert key in map(entry_of, [*COMMANDS, *INLINE]), "the README has no such command"
    file, name = ELSEWHERE[key].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_what_is_installed_on_request_can_be_had():
    asked = {name for names in re.findall(r"pip install [^\n`]*\.\[([\w,]+)\]", README) for name in names.split(",")}
    offered = re.findall(r'^        "(\w+)": [\[M]', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert asked
    assert asked <= set(offered)


@pytest.mark.parametrize("command", HERE)
def test_a_command_does_what_the_readme_says(command, tmp_path):
    assert command in [*COMMANDS, *INLINE]
    if "--output" in command:  # it works from anywhere
        answer = run(command.removeprefix("python "), cwd=tmp_path)
        assert list(tmp_path.iterdir())
    else:
        answer = run(command.removeprefix("python "))
    assert answer.returncode == 0, answer.stderr
    assert "\x1b" not in answer.stdout + answer.stderr
    if HERE[command] == "stdout":
        assert f"```\n{answer.stdout}```" in README


def test_the_table_of_the_bundled_checkpoints_is_the_readme_s():
    answer = run("run_validation.py --dataset digits --device cpu")
    table = [line for line in answer.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert "```\n" + "\n".join(table) + "\n```" in README


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_is_there_and_fits(entry):
    answer = run(f"{entry} --help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage: ")
    assert max(map(len, answer.stdout.splitlines())) <= 120
    assert len(answer.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.partition("/")[0] not in ("benchmarks", "pretrained")]
)
def test_an_unknown_option_is_one_line_and_exit_code_2(entry):
    answer = run(f"{entry} --nonsense")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1
    assert "error: " in answer.stderr


def test_the_second_python_block_needs_no_mxnet(tmp_path):
    second = [text for language, text in BLOCKS if language == "python"][1].replace('"examples', f'"{ROOT}/examples')
    code = "import sys; sys.modules['mxnet'] = None\n" + second + "print(*results, len(answers))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count(": match") == 2
    assert (tmp_path / "digits.onnx").is_file()


@pytest.mark.gluon
def test_the_first_python_block_runs():
    first = next(text for language, text in BLOCKS if language == "python")
    answer = subprocess.run(
        [sys.executable, "-c", first + "print(logits.shape)"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.stdout == "(8, 10)\n", answer.stderr


def test_files_that_the_readme_names_are_there():
    links = re.findall(r"\]\(((?!http|#)[^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:pydmobilenet|configs|tests|benchmarks|docs|examples)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
