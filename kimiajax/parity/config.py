"""The settings of `kimiajax parity`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ParityConfig:
    """Settings of a comparison with a reference framework."""

    reference: Literal["keras", "torch"]
    """The framework whose network, in double precision, is the judge."""
    weights: str
    """A weight file of that framework, or `random`: every array random, saved by the framework itself."""
    scans: Path | None = None
    """A scan file to take images from; by default one drawn by a program."""
    image_size: int | None = None
    """Side of the networks' input in pixels; by default 224, and 150 with `--protocol`."""
    input: Literal["unit", "native"] = "unit"
    """What images are mapped onto: [0, 1], as in the study, or the input that the weights were trained on."""
    resize: Literal["nearest", "bilinear", "box"] = "box"
    """Filter from patch to input, as Pillow defines it."""
    steps: int = 3
    """Training steps; the first and the last are compared. `--protocol` takes those of its three epochs."""
    protocol: bool = False
    """Compare the losses of the study's fine-tuning instead: every step of three epochs on 96 patches, with Keras."""
    conv: Literal["plain", "fast"] = "plain"
    """How this project's side convolves: as XLA does, or by Winograd's algorithm, for a CPU."""
    seed: int = 0
    """Of random weights, of the head, and of drawn scans."""
    require: bool = False
    """End with an exit status that is not 0 where the reference is not installed."""
    out: Path | None = None
    """Folder for parity.json; by default runs/parity/NETWORK-REFERENCE, or runs/parity/NETWORK-REFERENCE-protocol."""

    @property
    def size(self) -> int:
        """Side of the networks' input in pixels."""
        if self.image_size is not None:
            return self.image_size
        return 150 if self.protocol else 224

    def folder(self, network: str) -> Path:
        """Where the certificate goes."""
        what = f"{network}-{self.reference}-protocol" if self.protocol else f"{network}-{self.reference}"
        return self.out or Path("runs") / "parity" / what
