"""`python -m benchmarks`, the same as `kimiajax bench`, from the source tree."""

import os
import sys

from kimiajax.runtime import shell
from kimiajax.runtime.exit_codes import ended

if __name__ == "__main__":
    shell.enter(began_here=True)

    from .suite import main  # which imports JAX

    def run() -> int:
        shell.check_xla_flags(os.environ.get("XLA_FLAGS", ""))
        return main()

    sys.exit(ended(run, program="benchmarks"))
