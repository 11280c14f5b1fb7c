"""The whole comparison table, from scans to five rows of predictions, in a process that begins with nothing.

Claim: five times as fast as a Keras and scikit-learn script of the same protocol.

Both have the same patches, weights (random, as Keras' own files) and epochs. This project cuts the patches from a scan
file and resizes them, and compiles its programs anew ("programs kept": finds them, as from its second run on); the
script (`peers/keras_table.py`) is given the patches, resized. The two linear SVMs' predictions are compared with those
of plain convolutions; networks that are trained from other random numbers predict otherwise in every framework.
"""

import csv
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kimiajax.experiments.config import QUICK, TABLE

from .. import networks
from ..contender import Work, serve
from ..race import OURS, Case, Contender

SIZE, COMPARED = 224, ("fe_vgg16", "fe_inception_v3")
SCANS = {"num_scans": 24, "patch_size": SIZE, "grid": (4, 5), "test_patches": (2, 2)}
PEERS = tuple(
    Contender(peer.name, ".peers.keras_table", peer.environment, (), peer.variables)
    for peer in networks.PEERS
    if peer.name.startswith("keras/")
)
ANEW = Contender(OURS, ".workloads.table")
KEPT = Contender(f"{OURS}, programs kept", ".workloads.table", None, (("programs", "kept"),))
SHORT = (ANEW, *(peer for peer in PEERS if peer.name == "keras/tensorflow"))


def cases(full: bool = False, **given: Any) -> list[Case]:
    """48 training patches and 3 epochs, in one round, beside the fastest peer; in full 240 patches and 10 epochs, as
    `kimiajax table quick` has them with 10 from a scan, beside Keras on JAX as well."""
    if full:
        return [case(10, QUICK.optim.epochs, QUICK.optim.head_epochs)]
    return [case(2, 3, 10, most_rounds=1, contenders=SHORT)]


def case(
    patches_per_scan: int,
    epochs: int,
    head_epochs: int,
    most_rounds: int | None = None,
    contenders: tuple[Contender, ...] = (ANEW, KEPT, *PEERS),
) -> Case:
    settings = {"patches a scan": patches_per_scan, "epochs": epochs}
    return Case(
        workload="table",
        settings=settings,
        shared={
            "patches_per_scan": patches_per_scan,
            "head_epochs": head_epochs,
            "learning_rate": QUICK.optim.learning_rate,
            "programs": "anew",
        },
        amount=1,
        unit="tables",
        contenders=contenders,
        tolerance=dict.fromkeys(COMPARED, 0),
        write=lambda folder: write(folder, patches_per_scan),
        judge=Contender("judge", ".workloads.table", None, (("conv", "plain"), ("rows", COMPARED))),
        target=5.0,
        once=True,
        most_rounds=most_rounds,
    )


def write(folder: Path, patches_per_scan: int) -> None:
    """The scan file, the patches at the networks' size for the peers, and the weights as Keras saves them."""
    from kimiajax.data.open_scans import open_scans
    from kimiajax.data.patch_arrays import prepare_patches
    from kimiajax.data.patches import Rules
    from kimiajax.data.sources.synthetic import write_synthetic_scans
    from kimiajax.models.registry import BACKBONES
    from kimiajax.weights.load import load_weights
    from weights_convert.export import export

    write_synthetic_scans(folder / "scans.h5", seed=0, **SCANS)
    with open_scans(folder / "scans.h5") as scans:
        manifest, train, test = prepare_patches(scans, Rules(patches_per_scan=patches_per_scan), SIZE, "box")
    np.savez(folder / "patches.npz", train=train, train_scans=manifest.labels("train"), test=test)
    for network in networks.NETWORKS:
        # With the 1000 logits of Keras' files, which the study does not read.
        load_weights(network, "random", blocks=BACKBONES[network].blocks, image_size=SIZE).save(folder / network)
        export(folder / network, folder / f"{network}.h5")


def prepare(job: dict[str, Any]) -> Work:
    folder = Path(job["folder"])
    out, cache = folder / "table", folder / "cache"
    for leftover in (out, cache):
        shutil.rmtree(leftover, ignore_errors=True)
    if job["programs"] == "anew":
        shutil.rmtree(folder / "programs", ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    command = ["table", "quick", "--scans", str(folder / "scans.h5"), "--out", str(out), "--cache", str(cache)]
    command += ["--weights", *(f"{network}={folder / network}.h5" for network in networks.NETWORKS)]
    command += ["--patches-per-scan", str(job["patches_per_scan"]), "--epochs", str(job["epochs"])]
    command += ["--head-epochs", str(job["head_epochs"]), "--conv", job.get("conv", "auto")]
    command += ["--rows", *job.get("rows", TABLE)]

    def run() -> None:
        from kimiajax.cli.main import main

        if main(command):
            raise SystemExit("the table failed")

    return Work(run, lambda nothing: {path.stem: _predicted(path) for path in (out / "predictions").glob("*.csv")})


def _predicted(path: Path) -> np.ndarray:
    with path.open() as lines:
        return np.array([int(row["predicted"]) for row in csv.DictReader(lines)])


if __name__ == "__main__":
    serve(prepare)
