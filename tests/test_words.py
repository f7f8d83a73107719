"""Docstrings are plain: few relative clauses. (That they begin with a verb, ruff sees: D401.)"""

import ast
import re

from helpers import ROOT

PRONOUNS = re.compile(r"\b(which|that|what|whose|whom|where)\b", re.IGNORECASE)
MOST = 2.0  # in 100 words; timm's registry has 1.0, Lightning's fabric 1.3


def docstrings(folder):
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def test_docstrings_have_few_relative_pronouns():
    text = "\n".join(docstrings(ROOT / "pydmobilenet"))
    words = len(re.findall(r"[A-Za-z']+", text))
    assert words > 5000
    assert 100 * len(PRONOUNS.findall(text)) / words <= MOST
