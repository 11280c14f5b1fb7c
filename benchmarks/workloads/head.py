"""Ten epochs of Inception-v3's head on the stored features of 2,400 patches: RMSprop, batches of 32, 1,024 wide.

Claim: none yet. An epoch is one `lax.scan` here, and a call of `fit` in Keras.

Every contender goes through the patches in the same orders. The output is the mean loss over the first epoch: what
rounding leaves grows from step to step. The judge does the same in float64.
"""

from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from .. import networks
from ..contender import Work, serve
from ..race import OURS, Case, Contender

COUNT, WIDTH, EPOCHS, BATCH, LEARNING_RATE = 2_400, 2_048, 10, 32, 1e-3
PEERS = tuple(peer for peer in networks.PEERS if peer.name.startswith("keras/") and "flags" not in peer.name)


def cases(full: bool = False, **given: Any) -> list[Case]:
    """One."""
    return [
        Case(
            workload="head",
            settings={"patches": COUNT, "width": WIDTH, "epochs": EPOCHS},
            shared={"batch": BATCH, "learning_rate": LEARNING_RATE},
            amount=COUNT * EPOCHS,
            unit="patches",
            contenders=(Contender(OURS, ".workloads.head"), *PEERS),
            tolerance={"loss": 1e-3},
            write=write,
            judge=Contender("judge", ".workloads.head", None, (("judge", True),), networks.IN_FLOAT64),
        )
    ]


def write(folder: Path) -> None:
    import jax

    from kimiajax import paper
    from kimiajax.models.head import Classifier
    from kimiajax.models.registry import BACKBONES
    from kimiajax.training.steps import order_of

    rng = np.random.default_rng(0)
    labels = np.arange(COUNT, dtype=np.int32) % paper.NUM_SCANS
    centres = rng.standard_normal((paper.NUM_SCANS, WIDTH))
    features = np.maximum(0, centres[labels] + 4 * rng.standard_normal((COUNT, WIDTH))) / 4
    head = Classifier(BACKBONES["inception_v3"], (), paper.NUM_SCANS).init_head(jax.random.key(0), (WIDTH,))
    flat = flatten_dict(head, sep="/")
    orders = np.stack([order_of(jax.random.key(0), epoch, COUNT) for epoch in range(1, EPOCHS + 1)])
    np.savez(folder / "head.npz", features=features.astype(np.float32), labels=labels, orders=orders, **flat)


def prepare(job: dict[str, Any]) -> Work:
    import optax

    from kimiajax import paper
    from kimiajax.models.head import Classifier
    from kimiajax.models.registry import BACKBONES
    from kimiajax.training.freezing import TrainableBlocks
    from kimiajax.training.heads import fit_heads
    from kimiajax.training.steps import Training

    with np.load(Path(job["folder"]) / "head.npz") as arrays:
        given = {name: arrays[name] for name in arrays.files}
    dtype = np.float64 if job.get("judge") else np.float32
    head = unflatten_dict({name: array.astype(dtype) for name, array in given.items() if "/" in name}, sep="/")
    optimizer = optax.rmsprop(job["learning_rate"], decay=0.9, eps=1e-7)  # under the root, as Keras has it today
    training = Training(
        Classifier(BACKBONES["inception_v3"], (), paper.NUM_SCANS), optimizer, TrainableBlocks(("head",))
    )
    start, features = {"params": {"head": head}}, given["features"].astype(dtype)
    options = {"epochs": job["epochs"], "batch_size": job["batch"], "seeds": [0]}

    def fetch(fitted: Any) -> dict[str, np.ndarray]:
        ((_, history),) = fitted
        return {"loss": np.array([history[0].loss])}

    return Work(lambda: fit_heads(training, [start], [features], [given["labels"]], **options), fetch)


if __name__ == "__main__":
    serve(prepare)
