"""Nearest neighbours of 1,325 queries among the features of 27,055 patches, 2,048 wide: the ten nearest of each.

Claim: none yet. The judge, scikit-learn's brute-force search in float64, is a peer in float32 as well.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..contender import Work, serve
from ..race import OURS, Case, Contender

GALLERY, QUERIES, WIDTH, NEIGHBOURS = 27_055, 1_325, 2_048, 10


def cases(full: bool = False, **given: Any) -> list[Case]:
    """One."""
    return [
        Case(
            workload="distance",
            settings={"gallery": GALLERY, "queries": QUERIES, "width": WIDTH},
            shared={"neighbours": NEIGHBOURS},
            amount=QUERIES,
            unit="queries",
            contenders=(
                Contender(OURS, ".workloads.distance"),
                Contender("scikit-learn", ".peers.on_sklearn", "scikit_learn_intelex"),
            ),
            tolerance={"distances": 1e-4},
            write=write,
            judge=Contender("judge", ".peers.on_sklearn", None, (("float64", True),)),
        )
    ]


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.random((count, WIDTH), np.float32) for name, count in (("gallery", GALLERY), ("queries", QUERIES))
    }
    np.savez(folder / "features.npz", **arrays)


def prepare(job: dict[str, Any]) -> Work:
    import jax
    import jax.numpy as jnp

    from kimiajax.features.retrieval import nearest

    with np.load(Path(job["folder"]) / "features.npz") as arrays:
        gallery, queries = jnp.asarray(arrays["gallery"]), jnp.asarray(arrays["queries"])
    run = lambda: jax.block_until_ready(nearest(queries, gallery, job["neighbours"]))  # noqa: E731
    return Work(run, lambda found: {"distances": np.asarray(found.distances)})


if __name__ == "__main__":
    serve(prepare)
