"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

# What gives a process the network of two blocks, and `kimiajax` with it.
HAS_TWO = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from kimiajax.models.registry import BACKBONES
from support.networks import TWO
BACKBONES["two"] = TWO
"""
WITH_TWO = f"{HAS_TWO}\nfrom kimiajax.cli.main import main\nsys.exit(main(sys.argv[1:]))"


def run(code):
    """Runs code in which every warning is an error."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


def kimiajax_with_two(*arguments, **variables):
    """`kimiajax ARGUMENTS`, with the network of two blocks, under these variables of the environment."""
    command = [sys.executable, "-c", WITH_TWO, *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
