"""ONNX Runtime's side of features: the ONNX file that PyTorch exports, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..contender import Work, serve


def features(job: dict[str, Any]) -> Work:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = Path(job["folder"]) / "network.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    images = np.load(Path(job["folder"]) / "images.npy")
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    about = {"onnxruntime": onnxruntime.__version__, "threads": options.intra_op_num_threads}
    return Work(lambda: session.run(None, {given.name: x})[0], lambda y: {"features": y}, about=about)


if __name__ == "__main__":
    serve(features)
