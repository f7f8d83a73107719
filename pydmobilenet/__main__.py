"""python -m pydmobilenet: the same as the command ``pydmobilenet``."""

from .cli import main

if __name__ == "__main__":
    main()
