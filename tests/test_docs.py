"""What README and docs/ say is what happens: each command is run here, or by a test that is named; links lead on."""

import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from helpers import NOWHERE, ROOT, TRAINERS

from pydmobilenet.cli.commands import COMMANDS as COMMANDS_OF_THE_CLI

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
ALL = "\n".join(TEXTS.values())
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", ALL, re.DOTALL)
SHELL = "".join(text for language, text in BLOCKS if not language)
LINES = [line.partition("  #")[0].strip() for line in SHELL.splitlines()]
COMMANDS = [line for line in LINES if line.startswith(("python ", "pydmobilenet ", "make ", "pip ", "torchrun "))]
INLINE = [
    " ".join(text.split())
    for text in re.findall(r"`((?:OMP_NUM_THREADS=1 )?(?:python|pydmobilenet|torchrun|make) [^`]+)`", ALL)
    if "..." not in text
]

# Commands that need minutes, a network, or files of the reader's, and the test that runs their like.
ELSEWHERE = {
    "make validate": "test_commands.py::test_offline_the_bundled_checkpoints_are_checked_and_all_else_has_its_reason",
    "make test": "test_processor.py::test_the_tests_run_at_the_processor_s_own_level_and_at_each_lower_one",
    "pip install '.": "test_docs.py::test_what_is_installed_on_request_can_be_had",
    "pip install .": "test_wheel.py::test_from_a_wheel_everything_works_in_an_empty_directory",
    "pydmobilenet validate": "test_wheel.py::test_from_a_wheel_everything_works_in_an_empty_directory",
    "make lint": "test_layout.py::test_no_arrow_runs_back",  # and by .ci/run
    "make clean": "test_docs.py::test_make_has_each_target_that_is_named",
    "make docs": "test_docs.py::test_links_lead_to_pages_and_headings",  # and by .ci/run
    "pydmobilenet predict PHOTOS": "test_predict.py::test_a_folder_of_images_is_classified",
    "pydmobilenet predict PHOTOS --weights runs/MINE --csv": (
        "test_predict.py::test_csv_has_the_probability_of_each_class_where_that_is_asked_for"
    ),
    "pydmobilenet predict other-photos": "test_own_pictures.py::test_five_commands_lead_from_a_folder_to_an_onnx_file",
    "pydmobilenet train photos": "test_own_pictures.py::test_five_commands_lead_from_a_folder_to_an_onnx_file",
    "pydmobilenet train photos --image-size": (
        "test_image_size.py::test_a_run_of_larger_images_tells_their_size_to_whatever_takes_it"
    ),
    "pydmobilenet train photos --weights": (
        "test_validation_images.py::test_class_weights_scale_the_losses_of_their_images"
    ),
    "pydmobilenet validate runs/MINE": (
        "test_validation_images.py::"
        "test_a_run_is_measured_on_its_own_test_images_wherever_they_are_and_on_all_of_other_ones"
    ),
    "pydmobilenet export --weights": "test_own_pictures.py::test_five_commands_lead_from_a_folder_to_an_onnx_file",
    "pydmobilenet fetch": ("test_front_door.py::test_files_are_fetched_from_a_server_and_what_is_missing_is_said"),
    "pydmobilenet info": "test_front_door.py::test_a_network_s_layers_add_up",
    "pydmobilenet convert": "test_commands.py::test_a_checkpoint_is_converted",
    "pydmobilenet export": "test_onnx.py::test_the_documented_lines_classify_an_image_without_mxnet",
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
    "torchrun --max-restarts": (
        "test_torchrun.py::test_a_new_run_goes_on_where_torchrun_starts_all_again_after_one_was_killed"
    ),
    "torchrun --nnodes": "test_torchrun.py::test_two_processes_follow_one",
    "python train.py --resume": "test_resume.py::test_killed_at_three_random_moments_a_run_ends_with_the_same_bits",
    "python train.py": "test_train_command.py::test_last_and_best_and_every_second_epoch_are_kept",
    "OMP_NUM_THREADS=1 python train.py --dataset digits": "test_trained.py::test_a_bundled_network_is_trained_again",
    "python benchmarks/": "test_docs.py::test_help_is_there_and_fits",  # figures: by hand, on a quiet machine
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
    assert key in map(entry_of, [*COMMANDS, *INLINE]), "no page has such a command"
    file, name = ELSEWHERE[key].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_make_has_each_target_that_is_named():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {command.split()[1] for command in [*COMMANDS, *INLINE] if command.startswith("make ")}
    assert {"validate", "test"} <= named <= set(targets)


def test_what_is_installed_on_request_can_be_had():
    asked = {name for names in re.findall(r"pip install [^\n`]*\.\[([\w,]+)\]", ALL) for name in names.split(",")}
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


def python_blocks(page):
    """The Python code of a page, block by block; paths lead to this checkout."""
    blocks = re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)
    return [block.replace('"examples', f'"{ROOT}/examples') for block in blocks]


def run_code(code, directory, threads="1"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


WITHOUT_MXNET = "import sys; sys.modules['mxnet'] = None\n"


@pytest.mark.parametrize("engine", TRAINERS)
def test_readme_s_python_trains_validates_predicts_and_exports(engine, tmp_path):
    code = python_blocks("README.md")[0].replace("epochs=2", "epochs=1")
    out = run_code((WITHOUT_MXNET if engine == "pytorch" else "") + code + "print(*results, len(answers))", tmp_path)
    assert out.splitlines()[-1].endswith(": match 3")
    assert (tmp_path / "digits.onnx").is_file()


@pytest.mark.pytorch
def test_readme_s_pytorch_runs_without_mxnet(tmp_path):
    code = python_blocks("README.md")[1]
    assert run_code(WITHOUT_MXNET + code + "print(tuple(logits.shape))", tmp_path) == "(8, 10)\n"


def test_the_python_of_deployment_needs_no_mxnet(tmp_path):
    code = python_blocks("docs/deploy.md")[0]
    out = run_code(WITHOUT_MXNET + code + "print(*results, len(answers))", tmp_path)
    assert out.count(": match") == 2
    assert (tmp_path / "digits.onnx").is_file()


@pytest.mark.gluon
def test_a_gluon_network_gives_features_and_takes_a_fresh_head_as_is_said(tmp_path):
    code = next(block for block in python_blocks("docs/deploy.md") if "mx.nd.array" in block)
    assert run_code(code + "print(features.shape, net(images).shape)", tmp_path) == "(8, 128) (8, 37)\n"


@pytest.mark.pytorch
def test_the_features_of_a_pytorch_network_are_had_as_is_said(tmp_path):
    code = next(block for block in python_blocks("docs/deploy.md") if "forward_features" in block)
    assert run_code(code + "print(tuple(features.shape))", tmp_path) == "(8, 128)\n"


@pytest.mark.gluon
def test_the_python_of_training_gives_the_same_network_each_way(tmp_path):
    first, *others = python_blocks("docs/train.md")[0].replace("epochs=4", "epochs=1, warmup_epochs=0").splitlines()
    out = run_code("\n".join(["import pydmobilenet", first, *others, "print(*results)"]), tmp_path)
    assert out.splitlines()[-1].endswith(": match")


def heading_anchors(text):
    """The anchors that MkDocs and GitHub give to headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_pages_and_headings(page):
    links = re.findall(r"\]\(((?!http)[^)]+)\)", TEXTS[page])
    for link in links:
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_tests_that_a_page_names_are_there(page):
    for path in re.findall(r"`((?:pydmobilenet|configs|tests|benchmarks|docs|examples)/[\w./-]+)`", TEXTS[page]):
        assert (ROOT / path).exists(), path
    assert "TODO" not in TEXTS[page]


def test_readme_s_figure_has_all_that_was_measured():
    measured = runpy.run_path(str(ROOT / "docs" / "figure.py"))["measured"]()
    assert len(measured) == 18
    assert measured["pyd-concat-56-0.75"] == (4.1, 3.04, 5.51)


def test_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 150
    for path in PAGES[1:]:
        assert f"](docs/{path.name})" in README


def test_readme_s_table_is_that_of_the_reproduction():
    rows = re.findall(
        r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", README, re.MULTILINE
    )
    assert len(rows) == 22
    whole = [line.strip("| ").split(" | ") for line in TEXTS["docs/reproduce.md"].splitlines() if line.startswith("| ")]
    expected = {tuple(cells[place] for place in (0, 1, 3, 5, 6, 7, 8)) for cells in whole if len(cells) == 10}
    assert set(rows) <= expected
