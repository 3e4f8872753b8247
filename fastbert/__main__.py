"""``python -m fastbert`` is the ``fastbert`` command."""

import sys

from fastbert.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
