"""PyTorch's side of the networks' workloads, channels_last, eager or compiled as the job says; and its ONNX file.

The networks are torchvision's, on a GPU autocast where the job's precision is bfloat16.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

from ..contender import Work, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAST_FROZEN = {"vgg16": "23", "inception_v3": "Mixed_7a"}  # the last layer below the blocks that are fine-tuned


def network_of(job: dict[str, Any]) -> nn.Module:
    """The network in Keras' variant: average pools that leave the padding out, no scale in batch normalisation. It ends
    at its features, fc2 or the mean over space, and for fine-tuning VGG16 before its dense layers."""
    if job["network"] == "vgg16":
        network, side = torchvision.models.vgg16(init_weights=False), job["size"] // 32
        network.avgpool = nn.Identity()  # which makes 7 x 7 of any size
        network.classifier = network.classifier[:5] if job["workload"] != "finetune_step" else nn.Identity()
        if side != 7 and isinstance(network.classifier, nn.Sequential):
            network.classifier[0] = nn.Linear(512 * side**2, 4096)
    else:
        counting = functional.avg_pool2d
        functional.avg_pool2d = lambda x, **options: counting(x, count_include_pad=False, **options)
        network = torchvision.models.inception_v3(aux_logits=False, transform_input=False, init_weights=False)
        network.dropout = network.fc = nn.Identity()
    load(network, job)
    return network.eval()


def load(module: nn.Module, job: dict[str, Any]) -> None:
    """The arrays of `torch.npz`, which lie as this project has them: (height, width, in, out) and (in, out)."""
    with np.load(Path(job["folder"]) / "torch.npz") as arrays, torch.no_grad():
        for name, array in module.state_dict().items():
            if name in arrays.files:
                array.copy_(torch.from_numpy(np.ascontiguousarray(_laid_out(name, arrays[name], job["size"] // 32))))
            elif name.endswith("bn.weight"):
                array.fill_(1)
            elif not name.endswith("num_batches_tracked"):
                raise KeyError(name)


def _laid_out(name: str, array: np.ndarray, side: int) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if name == "classifier.0.weight":  # which flattens channels first
        return array.reshape(side, side, 512, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.T if array.ndim == 2 else array


def images_of(job: dict[str, Any]) -> torch.Tensor:
    images = torch.from_numpy(np.load(Path(job["folder"]) / "images.npy")).permute(0, 3, 1, 2)
    return images.to(DEVICE, memory_format=torch.channels_last)


def about(job: dict[str, Any]) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    flags = {"channels_last": True, "compile": job.get("compile", False), "precision": job["precision"]}
    return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads(), **flags}


def set_precision(job: dict[str, Any]) -> Any:
    """TF32 where the job says so; and the context in which the network runs."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = job["precision"] != "float32"
    return torch.autocast(DEVICE, torch.bfloat16, enabled=job["precision"] == "bfloat16")


def awaited(value: Any) -> Any:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return value


def features(job: dict[str, Any]) -> Work:
    context = set_precision(job)
    module, x = network_of(job).to(DEVICE, memory_format=torch.channels_last), images_of(job)
    if job.get("compile"):
        module = torch.compile(module, mode="max-autotune" if DEVICE == "cuda" else "default")

    def run() -> torch.Tensor:
        with torch.inference_mode(), context:
            return awaited(module(x))

    return Work(run, lambda y: {"features": y.float().cpu().numpy()}, about=about(job))


class Classifier(nn.Module):
    """A network's blocks after the boundary, or all of them, and the head."""

    def __init__(self, job: dict[str, Any], network: nn.Module):
        super().__init__()
        self.network, self.vgg = network, job["network"] == "vgg16"
        layers = dict((network.features if self.vgg else network).named_children())  # in the order in which they run
        cut = list(layers).index(LAST_FROZEN[job["network"]]) + 1
        self.frozen = nn.Sequential(*itertools.islice(layers.values(), cut))
        self.tuned = nn.Sequential(*itertools.islice(layers.values(), cut, None))
        inputs = 512 * (job["size"] // 32) ** 2 if self.vgg else 2048
        self.head_hidden, self.head_logits = nn.Linear(inputs, job["hidden"]), nn.Linear(job["hidden"], job["classes"])
        with np.load(Path(job["folder"]) / "torch.npz") as arrays, torch.no_grad():
            for name, module in (("hidden", self.head_hidden), ("logits", self.head_logits)):
                module.weight.copy_(torch.from_numpy(arrays[f"head_{name}.weight"].T.copy()))
                module.bias.copy_(torch.from_numpy(arrays[f"head_{name}.bias"]))

    def after(self, x: torch.Tensor) -> torch.Tensor:
        """The trained blocks and the head."""
        x = self.tuned(x)  # the head's arrays take height, width, channels; Inception-v3 has a mean over space by now
        x = (x.permute(0, 2, 3, 1) if self.vgg else x).flatten(1)
        return self.head_logits(torch.relu(self.head_hidden(x)))

    def trained(self) -> list[nn.Module]:
        return [self.tuned, self.head_hidden, self.head_logits]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.frozen(x))


def finetune_step(job: dict[str, Any]) -> Work:
    context = set_precision(job)
    classifier = Classifier(job, network_of(job)).eval().to(DEVICE, memory_format=torch.channels_last)
    x, y = images_of(job), torch.from_numpy(np.load(Path(job["folder"]) / "labels.npy").astype(np.int64)).to(DEVICE)
    trained = [classifier] if not job["boundary"] else classifier.trained()
    classifier.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
        module.train()
    model = classifier
    if job["cached"]:
        with torch.no_grad():
            x = torch.cat([classifier.frozen(part) for part in x.split(8)]).to(memory_format=torch.channels_last)
        model = classifier.after
    if job.get("compile"):
        model = torch.compile(model, mode="max-autotune" if DEVICE == "cuda" else "default")
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=job["learning_rate"], momentum=job["momentum"])
    state = {name.removeprefix("network."): array for name, array in classifier.state_dict().items()}
    watched = {what: state[name] for what, name in job["watched"]["torch"].items()}
    start = {what: array.clone() for what, array in watched.items()}

    def run() -> torch.Tensor:
        optimizer.zero_grad()
        with context:
            loss = functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        return awaited(loss.detach())

    def fetch(loss: torch.Tensor) -> dict[str, np.ndarray]:
        moved = {what: (array - start[what]).float().cpu().numpy() for what, array in watched.items()}
        moved = {what: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T for what, a in moved.items()}
        return {"loss": np.atleast_1d(loss.cpu().numpy()), **moved}

    return Work(run, fetch, about=about(job))


def export(job: dict[str, Any]) -> Work:
    """Writes `network.onnx`; runs nothing."""
    path = Path(job["folder"]) / "network.onnx"
    torch.onnx.export(network_of(job), (images_of(job),), str(path), dynamo=True, external_data=True, verbose=False)
    return Work(lambda: None, lambda nothing: {}, about=about(job))


WORKLOADS = {"features": features, "finetune_step": finetune_step, "export": export}

if __name__ == "__main__":
    serve(lambda job: WORKLOADS[job.get("do", job["workload"])](job))
