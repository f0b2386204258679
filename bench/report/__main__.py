"""`python -m bench.report`: see `document`."""

import sys

from bench.report.document import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
