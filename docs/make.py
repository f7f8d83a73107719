#!/usr/bin/env python3
"""The API's pages, from the docstrings, into build/docs. A warning is an error.

This is pdoc with three things that its command line cannot be told: it passes over the modules of a package that has
``__all__``, does not see what a package imports only when it is asked for, and does not know the names in the
annotations of a NamedTuple.
"""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import typing
import warnings
from pathlib import Path
from types import ModuleType

import pdoc

import pydmobilenet

OUTPUT = Path(__file__).resolve().parents[1] / "build" / "docs"


def expose(package: ModuleType) -> None:
    """Let pdoc see all public names and modules of a package, and of the packages in it."""
    names = getattr(package, "__all__", [])
    vars(package).update({name: getattr(package, name) for name in names})
    exposed = []
    infos = [info for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    for info in infos:
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another PyTorch, which timm wants
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


def main() -> None:
    expose(pydmobilenet)
    warnings.simplefilter("error")  # not before: what importing MXNet warns of is not ours
    shutil.rmtree(OUTPUT, ignore_errors=True)  # pages of modules that are gone
    pdoc.render.configure(footer_text=f"pydmobilenet {pydmobilenet.__version__}")
    pdoc.pdoc("pydmobilenet", output_directory=OUTPUT)
    print(f"wrote {OUTPUT / 'index.html'}")


if __name__ == "__main__":
    main()
