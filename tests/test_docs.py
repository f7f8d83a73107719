"""What README and docs/ say is what happens: each command is one, code runs, and links lead on."""

import functools
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from helpers import NOWHERE, ROOT, TRAINERS

from pydmobilenet import cli
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

OURS = re.compile(r"\b(train\.py|run_validation\.py|(?<!-m )pydmobilenet) ")
# What is run here, and what of it stands in the README.
HERE = {
    "pydmobilenet predict examples/digits --model pyd-add-29-0.25 --dataset digits": "stdout",
    'pydmobilenet list "pyd-add-*"': "",
    "pydmobilenet info pyd-concat-56-0.5": "",
    "pydmobilenet show --dataset digits --output grid.png": "",
}
SCRIPTS = {"train.py": "train", "run_validation.py": "validate"}
ENTRIES = [["pydmobilenet"], *([name] for name in SCRIPTS), *(["pydmobilenet", name] for name in COMMANDS_OF_THE_CLI)]
PROGRAMS = [path for folder in ("benchmarks", "pretrained") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line inside this process: exit code, standard output and standard error."""

    def run(words):
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main(SCRIPTS.get(words[0], ""))
        return ended.value.code, *capsys.readouterr()

    return run


def run(command, **settings):
    command = re.sub("^pydmobilenet ", "-m pydmobilenet ", command)
    environment = {**os.environ, "COLUMNS": "100", "HTTPS_PROXY": NOWHERE, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    settings = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, **settings}
    return subprocess.run([sys.executable, *shlex.split(command)], **settings)


@pytest.mark.parametrize("command", dict.fromkeys(command for command in [*COMMANDS, *INLINE] if OURS.search(command)))
def test_every_command_of_the_pages_is_one(command, call, monkeypatch, tmp_path):
    given = []
    for name, (add_options, function) in COMMANDS_OF_THE_CLI.items():
        instead = functools.wraps(function)(lambda name=name, **_: given.append(name))
        monkeypatch.setitem(COMMANDS_OF_THE_CLI, name, (add_options, instead))
    for name in ("DIR", "NEW"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command[OURS.search(command).start() :])
    code, _, err = call(words)
    assert not code, err
    assert given == [SCRIPTS.get(words[0]) or words[1]]


def test_make_has_each_target_that_is_named():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
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


def check_help(code, out):
    assert code == 0
    assert out.startswith("usage: ")
    assert max(map(len, out.splitlines())) <= 120
    assert len(out.splitlines()) <= 95


@pytest.mark.parametrize("words", ENTRIES, ids=" ".join)
def test_help_is_there_and_fits(words, call):
    code, out, _ = call([*words, "--help"])
    check_help(code, out)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_the_help_of_a_benchmark_is_there_and_fits(program):
    if "ArgumentParser(" in program.read_text(encoding="utf-8"):
        answer = run(f"{program} --help")
        check_help(answer.returncode, answer.stdout)


@pytest.mark.parametrize("words", ENTRIES, ids=" ".join)
def test_an_unknown_option_is_one_line_and_exit_code_2(words, call):
    code, out, err = call([*words, "--nonsense"])
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "error: " in err


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


def smaller(code):
    """Code that trains, with a network that takes seconds."""
    return code.replace("pyd-add-29-0.25", "pyd-add-11-0.125")


WITHOUT_MXNET = "import sys; sys.modules['mxnet'] = None\n"


@pytest.mark.slow
@pytest.mark.parametrize("engine", TRAINERS)
def test_readme_s_python_trains_validates_predicts_and_exports(engine, tmp_path):
    code = smaller(python_blocks("README.md")[0].replace("epochs=2", "epochs=1"))
    out = run_code((WITHOUT_MXNET if engine == "pytorch" else "") + code + "print(*results, len(answers))", tmp_path)
    assert out.splitlines()[-1].endswith(": match 3")
    assert (tmp_path / "digits.onnx").is_file()


@pytest.mark.pytorch
def test_readme_s_pytorch_runs_without_mxnet(tmp_path):
    code = python_blocks("README.md")[1]
    assert run_code(WITHOUT_MXNET + code + "print(tuple(logits.shape))", tmp_path) == "(8, 10)\n"


def test_the_python_of_deployment_needs_no_mxnet(tmp_path):
    code = python_blocks("docs/use.md")[0]
    out = run_code(WITHOUT_MXNET + code + "print(*results, len(answers))", tmp_path)
    assert out.count(": match") == 2
    assert (tmp_path / "digits.onnx").is_file()


@pytest.mark.gluon
def test_a_gluon_network_gives_features_and_takes_a_fresh_head_as_is_said(tmp_path):
    code = next(block for block in python_blocks("docs/use.md") if "mx.nd.array" in block)
    assert run_code(code + "print(features.shape, net(images).shape)", tmp_path) == "(8, 128) (8, 37)\n"


@pytest.mark.pytorch
def test_the_features_of_a_pytorch_network_are_had_as_is_said(tmp_path):
    code = next(block for block in python_blocks("docs/use.md") if "forward_features" in block)
    assert run_code(code + "print(tuple(features.shape))", tmp_path) == "(8, 128)\n"


@pytest.mark.slow
@pytest.mark.pytorch
def test_a_loop_of_one_s_own_learns_and_its_file_is_taken(tmp_path):
    blocks = python_blocks("docs/loop.md")
    shapes = (
        "print(tuple(logits.shape), tuple(heat.shape), float(heat.min()) >= 0, heat.amax((1, 2)).tolist() == [1.0] * 8)"
    )
    out = run_code("\n".join([WITHOUT_MXNET, *blocks, shapes]), tmp_path).splitlines()
    assert len(blocks[0].split("epochs, batch_size")[1].splitlines()) <= 25
    assert float(out[-2].split()[-2]) < 20  # % of the digits
    assert out[-1] == "(8, 10) (8, 32, 32) True True"


@pytest.mark.pytorch
def test_the_python_of_arrays_runs_as_it_stands(tmp_path):
    blocks = python_blocks("docs/train.md")
    first = next(block for block in blocks if "array_dataset" in block)
    drawn = "numpy.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), numpy.uint8), numpy.arange(40) % 2"
    begin = f"import numpy, pydmobilenet\nimages, labels = new_images, new_labels = {drawn}\n"
    small = first.replace("pyd-add-29-0.25", "pyd-add-11-0.125").replace("epochs=20", "epochs=1, batch_size=8")
    ours = "def log(run, row): print(row.epoch, row.error, row.train_loss, row.seconds)\n"
    begin, small = begin + "new_images = 255 - images\n" + ours, small.replace("epochs=1", "epochs=1, on_epoch=log")
    out = run_code(WITHOUT_MXNET + begin + small + "print(*results, len(answers))", tmp_path)
    assert "of 40 wrong)" in out
    assert out.splitlines()[-1].endswith(" 40")
    functions = [block for block in blocks if block.startswith("def ")]
    assert [len(block.strip().splitlines()) for block in functions] == [2, 2, 4]
    for block in functions:
        compile(block, "a block", "exec")


@pytest.mark.slow
@pytest.mark.gluon
def test_the_python_of_training_gives_the_same_network_each_way(tmp_path):
    code = smaller(python_blocks("docs/train.md")[0].replace("epochs=4", "epochs=1, warmup_epochs=0"))
    first, *others = code.splitlines()
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
