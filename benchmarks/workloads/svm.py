"""The linear SVM on features: fitted on 2,400 patches of 24 scans, and 1,325 patches classified.

Claim: twice as fast as scikit-learn's `SVC(kernel="linear")` at 2,048 features, with the same predictions.

Features are drawn: a centre for each scan, which the noise blurs, so that patches lie on wrong sides as they do on
tissue. The judge is that `SVC` itself; the outputs are its predictions, to the last one.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..contender import Work, serve
from ..race import OURS, Case, Contender

SCANS, TRAIN, TEST = 24, 2_400, 1_325
PEERS = (
    Contender("scikit-learn", ".peers.on_sklearn", "scikit_learn_intelex"),
    Contender("scikit-learn-intelex", ".peers.on_sklearn", "scikit_learn_intelex", (("patched", True),)),
)


def cases(full: bool = False, **given: Any) -> list[Case]:
    """Of 2,048 features; in full of 512 and 4,096 too."""
    return [case(width) for width in ((512, 2_048, 4_096) if full else (2_048,))]


def case(width: int) -> Case:
    return Case(
        workload="svm",
        settings={"features": width},
        amount=1,
        unit="fits",
        contenders=(Contender(OURS, ".workloads.svm"), *PEERS),
        tolerance={"predicted": 0},
        write=lambda folder: write(folder, width),
        judge=Contender("judge", ".peers.on_sklearn"),
        target=2.0 if width == 2_048 else None,
    )


def write(folder: Path, width: int) -> None:
    rng = np.random.default_rng(width)
    centres = rng.standard_normal((SCANS, width))
    for split, count in (("train", TRAIN), ("test", TEST)):
        labels = np.arange(count, dtype=np.int32) % SCANS
        features = np.maximum(0, centres[labels] + 8 * rng.standard_normal((count, width)))
        np.savez(folder / f"{split}.npz", features=features.astype(np.float32), labels=labels)


def prepare(job: dict[str, Any]) -> Work:
    from kimiajax.features.svm import fit_linear_svm

    with np.load(Path(job["folder"]) / "train.npz") as train, np.load(Path(job["folder"]) / "test.npz") as test:
        features, labels, tested = train["features"], train["labels"], test["features"]
    return Work(lambda: fit_linear_svm(features, labels).predict(tested), lambda y: {"predicted": y})


if __name__ == "__main__":
    serve(prepare)
