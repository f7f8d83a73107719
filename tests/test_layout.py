"""The arrows between the parts of the package run one way, and each engine stands in its own package alone."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGE = ROOT / "pydmobilenet"
ENGINES = {
    "mxnet": "gluon",
    "torch": "pytorch",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "ai_edge_litert": "tflite",
    "tflite_micro": "tflite",
}
# From those that use others to those that are used; what stands beside each other does not know each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"reporting"},
    {"export_formats"},
    {"validation", "prediction"},
    {"exported"},
    {"engine"},
    {"gluon", "pytorch", "onnx", "tflite"},
    {"training", "huggingface", "web", "exporting"},
    {"checkpoints"},
    {"answers", "provenance", "plots"},
    {"network", "folding", "data"},
]


# The second one stands inside a function: PyTorch alone reads its own files of weights.
ALLOWED = {("folding", "network"), ("checkpoints", "pytorch")}


def part(path):
    """The first name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The parts of the package, with a dot before them, and the other packages that a file imports, also inside
    functions.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = len(path.relative_to(PACKAGE).parts) - node.level  # how deep the module is that is meant
            if node.level == 0:
                yield node.module.partition(".")[0]
            elif inside == 0:
                names = [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]
                yield from (f".{name}" for name in names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_runs_back(path):
    own = part(path)
    place = next((number for number, layer in enumerate(LAYERS) if own in layer), None)
    for name in imported(path):
        if not name.startswith("."):
            assert ENGINES.get(name, own) == own, f"{own} imports {name}"
            continue
        other = name[1:]
        back = {name for layer in LAYERS[: (place or 0) + 1] for name in layer} - {own}
        assert place is None or (own, other) in ALLOWED or other not in back, f"{own} imports {other}"


def test_no_module_but_an_engine_s_own_imports_an_engine():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    modules = [name for name in modules if name.split(".")[1] not in ENGINES.values() and "__main__" not in name]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    print(*(f"{{name}} imports {{engine}}\\n" for engine in {list(ENGINES)} if engine in sys.modules), end="")
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, ""), answer.stderr
