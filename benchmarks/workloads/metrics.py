"""The bootstrap behind an interval: eta_p, eta_w and eta_total of five rows, each on 10,000 resampled test sets.

Claim: none. It answers what intervals cost, beside NumPy written out for this case.

Resampled places are drawn once, within each scan, and given to all; the judge is NumPy in float64.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..contender import Work, serve
from ..race import OURS, Case, Contender

SCANS, PATCHES, ROWS, DRAWS, AT_ONCE = 24, 1_325, 5, 10_000, 50


def cases(full: bool = False, **given: Any) -> list[Case]:
    """One."""
    return [
        Case(
            workload="metrics",
            settings={"draws": DRAWS, "rows": ROWS, "patches": PATCHES},
            amount=DRAWS * ROWS,
            unit="draws",
            contenders=(
                Contender(OURS, ".workloads.metrics"),
                Contender("numpy", ".peers.on_numpy", "scikit_learn_intelex"),
            ),
            tolerance={"scores": 1e-5},
            write=write,
            judge=Contender("judge", ".peers.on_numpy"),
        )
    ]


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.sort(np.arange(PATCHES) % SCANS).astype(np.int32)
    predicted = np.where(rng.random((ROWS, PATCHES)) < 0.65, labels, rng.integers(0, SCANS, (ROWS, PATCHES)))
    of_scan = [np.flatnonzero(labels == scan) for scan in range(SCANS)]
    places = np.concatenate([rng.choice(places, (DRAWS, len(places))) for places in of_scan], axis=1)
    arrays = {"labels": labels, "predicted": predicted.astype(np.int32), "places": places.astype(np.int32)}
    np.savez(folder / "draws.npz", **arrays)


def prepare(job: dict[str, Any]) -> Work:
    import jax
    import jax.numpy as jnp

    from kimiajax.evaluation.metrics import scores_from_counts
    from kimiajax.evaluation.statistics import correct_of_scan

    with np.load(Path(job["folder"]) / "draws.npz") as arrays:
        labels, predicted, places = (jnp.asarray(arrays[name]) for name in ("labels", "predicted", "places"))

    @jax.jit
    def bootstrap(labels: jax.Array, predicted: jax.Array, places: jax.Array) -> jax.Array:
        correct, tested = (predicted == labels).astype(jnp.float32), jnp.bincount(labels, length=SCANS)
        draw = lambda places: correct_of_scan(correct, places, labels, SCANS)  # noqa: E731
        return jnp.stack(scores_from_counts(jax.lax.map(draw, places, batch_size=AT_ONCE), tested), axis=1)

    run = lambda: jax.block_until_ready(bootstrap(labels, predicted, places))  # noqa: E731
    return Work(run, lambda y: {"scores": np.asarray(y)})


if __name__ == "__main__":
    serve(prepare)
