#!/usr/bin/env python3
"""Train a network of the zoo: the same as ``pydmobilenet train``."""

import sys

try:
    from pydmobilenet.cli import main
except ImportError as error:
    print(f"train.py: error: {error}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main("train")
