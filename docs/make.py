#!/usr/bin/env python3
"""Build README, the pages of this folder and the API's as one site in build/docs. A warning is an error.

MkDocs makes the pages, pdoc those of the API. pdoc alone would miss the modules of a package with ``__all__``, a
package's lazy imports, and the names in a NamedTuple's annotations.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import re
import shutil
import typing
import warnings
from pathlib import Path
from types import ModuleType

import pdoc
from mkdocs.commands.build import build
from mkdocs.config import load_config

import pydmobilenet

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "docs"
SOURCE = ROOT / "build" / "pages"
PAGES = ("reproduce", "train", "loop", "deploy", "speed", "mxnet", "design", "contributing")


def expose(package: ModuleType) -> None:
    """Let pdoc see all public names and modules of a package, and of the packages in it."""
    names = getattr(package, "__all__", [])
    vars(package).update({name: getattr(package, name) for name in names})
    exposed = []
    infos = [info for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    for info in infos:
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except (ImportError, RuntimeError) as error:  # RuntimeError: timm's torchvision is of another PyTorch
            print(f"left out, as it cannot be imported ({error}): {package.__name__}.{info.name}")
            continue
        exposed.append(info.name)
        resolve_named_tuples(module)
        if info.ispkg:
            expose(module)
    package.__all__ = [*names, *(name for name in exposed if name not in names)]


def resolve_named_tuples(module: ModuleType) -> None:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, tuple) and value.__module__ == module.__name__:
            value.__new__.__annotations__ = typing.get_type_hints(value)


def gather() -> None:
    """Copy the pages into one folder, README as the first one."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE, ignore=shutil.ignore_patterns("*.py", "*.yml", "*.jinja2", "__pycache__"))
    shutil.copytree(ROOT / "examples", SOURCE / "examples", ignore=shutil.ignore_patterns(".*", "digits"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (SOURCE / "index.md").write_text(re.sub(r"\(docs/", "(", readme), encoding="utf-8")


def write_pages() -> None:
    """Write the pages, in the order of `PAGES`, with the API as the last one."""
    config = load_config(
        config_file=str(ROOT / "docs" / "mkdocs.yml"),
        docs_dir=str(SOURCE),
        site_dir=str(OUTPUT),
        strict=True,
        nav=[{"Home": "index.md"}, *(f"{name}.md" for name in PAGES), {"API": "api/pydmobilenet.html"}],
    )
    build(config)


def write_api() -> None:
    """Write the API's pages, from the docstrings, below the others."""
    expose(pydmobilenet)
    warnings.simplefilter("error")  # not before: MXNet's import warns
    pdoc.render.configure(footer_text=f"pydmobilenet {pydmobilenet.__version__}", template_directory=ROOT / "docs")
    pdoc.pdoc("pydmobilenet", output_directory=SOURCE / "api")


def main() -> None:
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "true")
    logging.basicConfig(level=logging.WARNING)  # MkDocs names what it ends for
    shutil.rmtree(OUTPUT, ignore_errors=True)  # pages of deleted modules
    gather()
    write_api()
    write_pages()
    print(f"wrote {OUTPUT / 'index.html'}")


if __name__ == "__main__":
    main()
