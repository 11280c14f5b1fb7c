"""What both sides compute. A job is a folder of plain files, so that a side needs nothing of the other's code.

    job.json     the fields of `Job`
    head.npz     arrays of the head under this project's names
    SIDE.npz     what a side computed, under the names below; SIDE.json says with which versions

Names of outputs: `decoded` [n 3 h w] and `resized` [n 3 s s], uint8; `input` [n s s 3]; `block/NAME`, `features` and
`logits` [n ...]; of the judged images as one batch: `loss`, `gradients/ARRAY`, and `step K/ARRAY`, what K steps have
changed an array by, of every array that trains or has changed; `predictions`, the logits of all images after the last
step, and `eta`, their eta_p, eta_w and eta_total.

Of a protocol, which is a job with batches, instead: `input`, and by mode of trained batch normalisation `MODE/loss`
[steps], the mean loss of each step's batch, and `MODE/evaluation` [epochs], that of all images after each epoch, by
stored statistics.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Attributes:
    network: its name.
    application: the function of `keras.applications` that builds it; None of torch's.
    layers: block -> the layer of Keras' network whose output is the block's.
    features, bottleneck: the block that is the paper's feature vector, and the last one before the head.
    pooled: the block whose mean over space is the block "pooled"; None where there is none.
    weights: path of the weight file.
    classes: ImageNet classes in it; None without top.
    scans: path of the scan file that images are taken from.
    patches: indices of the three test patches that are each image's channels: gray ones would hide exchanged channels.
    labels: the scan of each image, counted from 0.
    size: side of the network's input.
    resize: the filter from patch to input, as Pillow names it.
    input: "unit" for [0, 1] as in the study, "native" for what the weights were trained on.
    judged: how many of the images are computed in double precision, and trained on; of a protocol all.
    boundary: the last block that does not train; all after it do.
    steps: training steps; the first and the last are compared.
    learning_rate, momentum: of SGD.
    batch_norm_momentum: of running statistics where batch normalisation trains.
    hidden: width of the head's hidden layer.
    seed: of random weights and of the head.
    batches: of a protocol, epoch by epoch and step by step, the places of the step's images; else none.
    epsilon: of batch normalisation, where the weight file asks for another than the network's.
    modes: of a protocol, of trained batch normalisation: "inference", "keras2017".
    """

    network: str
    application: str | None
    layers: dict[str, str]
    features: str
    bottleneck: str
    pooled: str | None
    weights: str
    classes: int | None
    scans: str
    patches: tuple[tuple[int, int, int], ...]
    labels: tuple[int, ...]
    size: int
    resize: str
    input: str
    judged: int
    boundary: str
    steps: int
    learning_rate: float
    momentum: float
    batch_norm_momentum: float
    hidden: int
    seed: int
    batches: tuple[tuple[tuple[int, ...], ...], ...] = ()
    modes: tuple[str, ...] = ()
    epsilon: float | None = None

    @property
    def num_scans(self) -> int:
        return max(self.labels) + 1

    def write(self, folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(dataclasses.asdict(self), indent=2), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> "Job":
        fields: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return Job(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    """A list, of lists perhaps, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
