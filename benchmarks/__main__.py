"""`python -m benchmarks`, the same as `kimiajax bench`."""

import sys

from benchmarks.suite import main
from kimiajax.ending import ended

if __name__ == "__main__":
    sys.exit(ended(main, program="benchmarks"))
