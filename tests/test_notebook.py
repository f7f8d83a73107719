"""The notebooks run from start to end; their committed outputs are of a run, without the messages on stderr.

After a change to one: ``jupyter execute --inplace examples/quickstart.ipynb``.
"""

import re

import pytest
from helpers import ROOT

for module, extra in {
    "nbclient": "notebook",
    "ipykernel": "notebook",
}.items():
    pytest.importorskip(module, reason=f"the notebook needs the extra '{extra}'")

import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

ENGINES = [
    pytest.param("gluon", marks=[pytest.mark.gluon, pytest.mark.fuzz]),
    pytest.param("pytorch", marks=pytest.mark.pytorch),
]
# Each notebook, and what makes it short.
NOTEBOOKS = {
    "quickstart": ('"pyd-add-29-0.25", "digits", epochs=3', '"pyd-add-11-0.25", "digits", epochs=1'),
    "pictures": ('"epochs": 8', '"warmup_epochs": 0, "epochs": 1'),
}
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)
WITHOUT_MXNET = "import sys\nsys.modules['mxnet'] = None  # as where it is not installed\n"
ABSOLUTE = re.compile(r"(?<![\w.:/])/[\w.-]+/|\b[A-Z]:\\|~/|/(home|root|tmp|Users)\b")  # a path of one machine


def path(name):
    return ROOT / "examples" / f"{name}.ipynb"


def read(name):
    return nbformat.read(path(name), as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Return the kinds of a cell's output: printed text, values, pictures."""
    return {kind for output in cell.outputs for kind in output.get("data", {output.get("name", "error"): None})}


def texts(notebook):
    """Yield all text of a notebook."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield "".join(value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@each_notebook
def test_it_runs_anywhere_with_outputs_of_the_committed_kinds(name, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))  # neither the user's kernels nor their settings
    here = tmp_path / "here"
    here.mkdir()
    notebook, (long, short) = read(name), NOTEBOOKS[name]
    (training,) = (cell for cell in notebook.cells if long in cell.source)
    training.source = training.source.replace(long, short)
    if engine == "pytorch":
        first = code_cells(notebook)[0]
        first.source = WITHOUT_MXNET + first.source
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": here}}).execute()
    shown = [kinds(cell) - {"stderr"} for cell in code_cells(notebook)]
    assert shown == [kinds(cell) for cell in code_cells(read(name))]
    page = "".join(texts(notebook))
    assert len(re.findall(r"^epoch .*val", page, re.MULTILINE)) == 1
    assert "\r" not in page  # no progress bar
    assert "\N{FULL BLOCK}" not in page
    assert not list(here.iterdir())  # it works in a temporary directory of its own


@each_notebook
def test_every_cell_has_its_output(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in code_cells(notebook):
        assert kinds(cell) or cell.source.startswith("PHOTOS = ")
        assert kinds(cell).isdisjoint({"error", "stderr"})
        assert "print(" not in cell.source or "stdout" in kinds(cell)
        assert not re.search(r"plt\.show|Image\(", cell.source) or "image/png" in kinds(cell)


@each_notebook
def test_it_has_no_word_of_its_machine_and_is_small(name):
    for text in texts(read(name)):
        assert not ABSOLUTE.search(text)
        assert "Traceback" not in text
        assert "Warning" not in text
    assert path(name).stat().st_size < 200_000


@pytest.mark.parametrize("text", ["/home/me/x.py", "in /opt/lib/x", "C:\\x", "~/x", "'/tmp'", "(/a/b)"])
def test_absolute_paths_are_recognised(text):
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize("text", ["1/2", "262 images/s", "configs/digits.yaml", "https://a.org/b/c"])
def test_other_slashes_are_none(text):
    assert not ABSOLUTE.search(text)
