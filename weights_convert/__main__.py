"""`python -m weights_convert keras NETWORK FILE OUT`: a Keras `.h5` file to a checkpoint with lineage."""

import argparse
import sys
from pathlib import Path

from kimiajax.errors import UserError
from weights_convert.keras import TABLES, convert_keras


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description=__doc__)
    frameworks = parser.add_subparsers(dest="framework", required=True)
    keras = frameworks.add_parser("keras", help="a .h5 file that Keras published or saved")
    keras.add_argument("network", choices=TABLES)
    keras.add_argument("file", type=Path)
    keras.add_argument("out", type=Path, help="folder to write; must not exist")
    arguments = parser.parse_args(argv)
    try:
        if arguments.out.exists():
            raise UserError(f"{arguments.out}: exists already; choose another folder or remove it")
        weights = convert_keras(arguments.network, arguments.file)
        weights.save(arguments.out)
    except (UserError, OSError) as error:
        print(f"weights_convert: {error}", file=sys.stderr)
        return 2
    lineage = weights.lineage
    top = f"with top, {lineage['classes']} classes" if lineage["top"] else "without top"
    print(f"{arguments.out}: {arguments.network} {top}, from {lineage['source']} ({lineage['source_sha256'][:12]})")
    print(f"published file: {lineage['published'] or 'no, another one'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
