"""Weight files of other frameworks to checkpoints with lineage, and back.

python -m weights_convert keras NETWORK FILE OUT      a file that Keras saved: .h5, .weights.h5, .keras
python -m weights_convert torch NETWORK FILE OUT      torchvision's or timm's arrays: .safetensors
python -m weights_convert export CHECKPOINT OUT.h5    a checkpoint as a file that Keras loads
"""

import argparse
import os
import sys
from pathlib import Path

from kimiajax.runtime import shell
from kimiajax.runtime.exit_codes import ended


def main(argv: list[str] | None = None) -> int:
    shell.enter(argv is None)
    return ended(lambda: _main(argv), "--debug" in (sys.argv if argv is None else argv), program="weights_convert")


def _main(argv: list[str] | None) -> int:
    shell.check_xla_flags(os.environ.get("XLA_FLAGS", ""))

    from weights_convert.convert import FRAMEWORKS  # which imports JAX
    from weights_convert.keras_graph import CHANNELS
    from weights_convert.mappings import all_files

    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser = argparse.ArgumentParser(
        parents=[shared],
        prog="python -m weights_convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for framework, module in FRAMEWORKS.items():
        command = commands.add_parser(framework, parents=[shared], help=(module.__doc__ or "").split("\n", 1)[0])
        command.add_argument("network", choices=[name for name, _ in all_files(framework)])
        command.add_argument("file", type=Path)
        command.add_argument("out", type=Path, help="folder to write; must not exist")
        command.add_argument("--no-top", action="store_true", help="leave the ImageNet classes out")
        command.add_argument(
            "--with-head", action="store_true", help="take a head of a hidden dense layer and one of logits"
        )
        if framework == "keras":
            for name, choices in (("backend", ("tensorflow", "theano")), ("data-format", CHANNELS)):
                command.add_argument(f"--{name}", choices=list(choices), help="of a file that does not say it")
        if framework == "torch":
            command.add_argument(
                "--fold-scale", action="store_true", help="multiply batch normalisation's scale into the kernels"
            )
            command.add_argument(
                "--imagenet-normalised", action="store_true", help="Inception-v3 trained on such, as timm's gluon_in1k"
            )
    command = commands.add_parser("export", parents=[shared], help="write a checkpoint as a Keras .h5 file of weights")
    command.add_argument("checkpoint", type=Path, help="a converted checkpoint, or runs/NAME/checkpoints/ROW")
    command.add_argument("out", type=Path, help="the .h5 file to write; must not exist")
    arguments = parser.parse_args(argv)
    return _run(arguments)


@shell.standard_settings()
def _run(arguments: argparse.Namespace) -> int:
    lines = _export(arguments) if arguments.command == "export" else _convert(arguments)
    print("\n".join(lines))
    return 0


def _convert(arguments: argparse.Namespace) -> list[str]:
    from weights_convert.convert import convert
    from weights_convert.export import must_be_new

    must_be_new(arguments.out)
    weights = convert(
        arguments.network,
        arguments.file,
        framework=arguments.command,
        top=not arguments.no_top,
        fold=getattr(arguments, "fold_scale", False),
        normalised=getattr(arguments, "imagenet_normalised", False),
        head=arguments.with_head,
        backend=getattr(arguments, "backend", None),
        data_format=getattr(arguments, "data_format", None),
    )
    weights.save(arguments.out)
    lineage = weights.lineage
    top = f"with top, {lineage['classes']:,} classes" if lineage["top"] else "without top"
    if lineage["label_offset"]:
        top += " (the first taken as the background, as TensorFlow-Slim counts)"
    lines = [f"{arguments.out}: {arguments.network} {top}, from {lineage['source']} ({lineage['source_sha256'][:12]})"]
    lines.append(f"published file: {lineage['published'] or 'no, another one'}")
    if "head" in weights.variables["params"]:
        classes = weights.variables["params"]["head"]["logits"]["bias"].size
        lines.append(f"head: of a fine-tuned network, {classes} classes")
    if lineage["options"]:
        lines.append("network: " + ", ".join(f"{name}={value}" for name, value in lineage["options"].items()))
    within = lineage["says"].get("within")
    lines += [f"taken out of {within}"] if within else []
    if lineage["expected_input"] is None:
        lines.append("trained on: what layers before it make of images, which cannot be read")
    lines += [f"changed: {change}" for change in lineage["changes"]]
    if lineage["left_out"]:
        lines.append("left out: " + ", ".join(lineage["left_out"]))
    return lines


def _export(arguments: argparse.Namespace) -> list[str]:
    from weights_convert.export import export

    return [f"{arguments.out}: {export(arguments.checkpoint, arguments.out)}"]


if __name__ == "__main__":
    sys.exit(main())
