"""Contenders of the tests' races: a product of small matrices, honest or with a fault; and the real one with faults."""

import time
from pathlib import Path

import numpy as np

from benchmarks.contender import Work, serve


class Late:
    """What is not there yet when the run says that it is done."""

    def __init__(self, value):
        self.value = value

    def wait(self):
        time.sleep(0.05)
        return self.value


def product(job):
    with np.load(Path(job["folder"]) / "matrices.npz") as arrays:
        a, b = arrays["a"], arrays["b"]
    fault = job.get("fault")
    if fault == "other weights":
        b = np.roll(b, 1)
    if fault == "no start":
        raise RuntimeError("no such device")
    if fault == "second configuration":
        serve(product)
    if fault == "not awaited":
        return Work(lambda: Late(a @ b), lambda late: {"product": late.wait()})
    if fault == "not finite":
        return Work(lambda: a @ b / 0, lambda y: {"product": y})

    def run():
        time.sleep(job.get("pause", 0.01))
        return a @ b

    def dies():
        raise RuntimeError("fell over")

    calls = iter([run, *[dies] * 10])
    if fault == "dies later":
        return Work(lambda: next(calls)(), lambda y: {"product": y})
    return Work(run, lambda y: {"product": y[: job.get("rows", len(y))]})


def features(job):
    """This project's features, with what would make them wrong."""
    import benchmarks.workloads.features
    from kimiajax.models import conv, winograd

    fault, matrices = job["fault"], winograd._matrices
    if fault == "wrong constant":

        def wrong(tile, side):
            right = matrices(tile, side)
            of_input = right.of_input.copy()
            of_input[1, 2] *= 1.001
            return right._replace(of_input=of_input)

        winograd._matrices = wrong
    if fault == "missing bias":
        call = conv.Conv.__call__

        def without(self, x):
            output = call(self, x)
            return output - self.get_variable("params", "bias") if self.use_bias else output

        conv.Conv.__call__ = without
    return benchmarks.workloads.features.prepare(job)


if __name__ == "__main__":
    serve(lambda job: features(job) if job["workload"] == "features" else product(job))
