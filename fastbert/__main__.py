"""Run the ``fastbert`` command: ``python -m fastbert``."""

import sys

from fastbert.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
