"""scikit-learn's side of the SVM, plain or with Intel's patch, and of the nearest neighbours."""

from pathlib import Path
from typing import Any

import numpy as np

from ..contender import Work, serve


def about(job: dict[str, Any]) -> dict[str, Any]:
    import sklearn

    return {"scikit-learn": sklearn.__version__, "patched": job.get("patched", False)}


def svm(job: dict[str, Any]) -> Work:
    if job.get("patched"):
        from sklearnex import patch_sklearn

        patch_sklearn(verbose=False)
    from sklearn.svm import SVC

    with np.load(Path(job["folder"]) / "train.npz") as train, np.load(Path(job["folder"]) / "test.npz") as test:
        features, labels, tested = train["features"], train["labels"], test["features"]
    run = lambda: SVC(kernel="linear", C=1.0).fit(features, labels).predict(tested)  # noqa: E731
    return Work(run, lambda y: {"predicted": y}, about=about(job))


def distance(job: dict[str, Any]) -> Work:
    from sklearn.neighbors import NearestNeighbors

    with np.load(Path(job["folder"]) / "features.npz") as arrays:
        gallery, queries = (
            arrays[name].astype(np.float64 if job.get("float64") else np.float32) for name in ("gallery", "queries")
        )
    search = NearestNeighbors(n_neighbors=job["neighbours"], algorithm="brute").fit(gallery)

    def fetch(found: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        return {"distances": found[0]}

    return Work(lambda: search.kneighbors(queries), fetch, about=about(job))


WORKLOADS = {"svm": svm, "distance": distance}

if __name__ == "__main__":
    serve(lambda job: WORKLOADS[job["workload"]](job))
