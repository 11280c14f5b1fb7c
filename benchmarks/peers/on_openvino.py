"""OpenVINO's side of features: the ONNX file that PyTorch exports, on the CPU, one request over all cores."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from ..contender import Work, serve


def features(job: dict[str, Any]) -> Work:
    core = openvino.Core()
    model = core.read_model(Path(job["folder"]) / "network.onnx")
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    images = np.load(Path(job["folder"]) / "images.npy")
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    about = {"openvino": openvino.__version__, "threads": compiled.get_property("INFERENCE_NUM_THREADS")}
    return Work(lambda: request.infer([x])[compiled.outputs[0]], lambda y: {"features": y}, about=about)


if __name__ == "__main__":
    serve(features)
