#!/usr/bin/env python3
"""Check the published error rates: the same as ``pydmobilenet validate``."""

import sys

try:
    from pydmobilenet.cli import main
except ImportError as error:
    print(f"run_validation.py: error: {error}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main("validate")
