"""The recipes and the bundled checkpoints: in the checkout beside the package, in an installed wheel inside it."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
PLACE = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS, PRETRAINED = PLACE / "configs", PLACE / "pretrained"
