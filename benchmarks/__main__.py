"""`python -m benchmarks`, the same as `kimiajax bench`, from the source tree."""

import sys

from kimiajax.runtime.exit_codes import ended

from .suite import main

if __name__ == "__main__":
    sys.exit(ended(main, program="benchmarks"))
