#!/usr/bin/env python3
"""Build README, the pages of this folder and the API's as one site in build/docs. A warning is an error.

MkDocs makes the pages, pdoc those of the API. pdoc alone would miss the modules of a package with ``__all__``, a
package's lazy imports, and the names in a NamedTuple's annotations.
"""

from __future__ import annotations

import argparse
import dataclasses
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
        resolve_fields(module)
        if info.ispkg:
            expose(module)
    package.__all__ = [*names, *(name for name in exposed if name not in names)]


def resolve_fields(module: ModuleType) -> None:
    """Give the constructors of named tuples, and of dataclasses of dataclasses, the types of their fields.

    Only a field's own module has the names in its type, and some of them for the type checker alone.
    """
    names = vars(pydmobilenet.catalog) | vars(pydmobilenet.data)
    for value in vars(module).values():
        if not isinstance(value, type) or value.__module__ != module.__name__:
            continue
        if issubclass(value, tuple):
            value.__new__.__annotations__ = typing.get_type_hints(value)
        elif any(map(dataclasses.is_dataclass, value.__bases__)):
            value.__init__.__annotations__.update(typing.get_type_hints(value, localns=names))


def gather() -> None:
    """Copy the pages into one folder, README as the first one."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE, ignore=shutil.ignore_patterns("*.py", "*.yml", "*.jinja2", "__pycache__"))
    shutil.copytree(ROOT / "examples", SOURCE / "examples", ignore=shutil.ignore_patterns(".*", "digits"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (SOURCE / "index.md").write_text(re.sub(r"\(docs/", "(", readme), encoding="utf-8")


def write_demo(runtime: str | None) -> None:
    """Write the page of a bundled network, with onnxruntime-web from a folder or, by default, from its CDN."""
    pydmobilenet.export("pyd-add-29-0.25", SOURCE / "demo", "digits", format="web", runtime=runtime)


def write_pages() -> None:
    """Write the pages, of which mkdocs.yml has the order."""
    build(load_config(config_file=str(ROOT / "docs" / "mkdocs.yml"), strict=True))


def write_api() -> None:
    """Write the API's pages, from the docstrings, below the others."""
    expose(pydmobilenet)
    warnings.simplefilter("error")  # not before: MXNet's import warns
    pdoc.render.configure(footer_text=f"pydmobilenet {pydmobilenet.__version__}", template_directory=ROOT / "docs")
    pdoc.pdoc("pydmobilenet", output_directory=SOURCE / "api")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", metavar="DIR", help="put npm's onnxruntime-web into the site (default: a CDN)")
    runtime = parser.parse_args().runtime
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "true")
    logging.basicConfig(level=logging.WARNING)  # MkDocs names what it ends for
    shutil.rmtree(OUTPUT, ignore_errors=True)  # pages of deleted modules
    gather()
    write_demo(runtime)
    write_api()
    write_pages()
    print(f"wrote {OUTPUT / 'index.html'}")


if __name__ == "__main__":
    main()
