"""torch's side of a job: torchvision's and timm's networks, torch's gradients and optimizer, on the CPU.

python -m kimiajax.parity.torch_reference FOLDER make|float32|float64
"""

import platform
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from kimiajax.parity.job import Job
from kimiajax.parity.reference import Outputs, main, read_images, score
from kimiajax.parity.torch_networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    blocks,
    inception_v3,
    randomise,
    timm_vgg16,
    torchvision_vgg16,
)


def build(job: Job, names: set[str]) -> nn.Module:
    """The network of these array names."""
    if job.network == "vgg16":
        kind = timm_vgg16 if "pre_logits.fc1.weight" in names else torchvision_vgg16
        return kind(job.classes, side=job.size // 32)
    auxiliary = any(name.startswith("AuxLogits.") for name in names) or not names
    return inception_v3(job.classes, auxiliary, transform_input=job.input == "native")


def make(job: Job) -> None:
    """A file of torchvision's layout, every array random."""
    network = build(job, set())
    randomise(network, job.seed)
    save_file(network.state_dict(), job.weights)


class Classifier(nn.Module):
    def __init__(self, job: Job, network: nn.Module, inputs: int):
        super().__init__()
        self.network, self.bottleneck = network, job.bottleneck
        self.head_hidden, self.head_logits = nn.Linear(inputs, job.hidden), nn.Linear(job.hidden, job.num_scans)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = blocks(self.network, x)[self.bottleneck]
        x = x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x  # the head's arrays take H, W, C
        return self.head_logits(torch.relu(self.head_hidden(x)))

    def trained(self, boundary: str) -> list[nn.Module]:
        """The modules after the boundary, and the head."""
        if self.bottleneck == "pooled":
            after = {"mixed8": (self.network.Mixed_7b, self.network.Mixed_7c)}[boundary]
        else:
            pools = [i for i, layer in enumerate(self.network.features) if isinstance(layer, nn.MaxPool2d)]
            after = self.network.features[pools[int(boundary[-1]) - 1] + 1 :]
        return [*after, self.head_hidden, self.head_logits]


def count_entries(bn: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    bn.entries, bn.variance_before = inputs[0].numel() / inputs[0].shape[1], bn.running_var.clone()


def take_out_bessels_correction(norms: list[nn.BatchNorm2d]) -> None:
    """The running variance as Keras and Flax move it: torch puts n / (n - 1) times the batch's variance into it."""
    for bn in norms:
        kept = (1 - bn.momentum) * bn.variance_before
        bn.running_var.copy_(kept + (bn.running_var - kept) * (bn.entries - 1) / bn.entries)


def run(job: Job, dtype: str, folder: Path) -> Outputs:
    torch.set_default_dtype(getattr(torch, dtype))
    outputs = read_images(job)
    count = job.judged if dtype == "float64" else len(job.patches)
    arrays = load_file(job.weights)
    network = build(job, set(arrays))
    network.load_state_dict(arrays)
    network.to(torch.get_default_dtype()).eval()

    images = torch.from_numpy(outputs["resized"]).to(torch.get_default_dtype()) / 255
    if job.input == "native":
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        images = (images - mean) / std
    if job.network == "inception_v3":  # what its first convolution sees, from here on
        images, network.transform_input = network._transform_input(images), False
    outputs["input"] = images.permute(0, 2, 3, 1).numpy()
    images = images[:count]

    with torch.no_grad():
        taps = blocks(network, images)
    for block, value in taps.items():
        outputs[f"block/{block}"] = (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()
    if job.features in taps:
        outputs["features"] = outputs[f"block/{job.features}"]

    with np.load(folder / "head.npz") as head:
        classifier = Classifier(job, network, len(head["hidden/kernel"])).eval()
        with torch.no_grad():
            for layer, name in ((classifier.head_hidden, "hidden"), (classifier.head_logits, "logits")):
                layer.weight.copy_(torch.from_numpy(head[f"{name}/kernel"].T))
                layer.bias.copy_(torch.from_numpy(head[f"{name}/bias"]))
    outputs |= train_steps(job, classifier, images)
    return outputs


def train_steps(job: Job, classifier: Classifier, images: torch.Tensor) -> Outputs:
    batch, labels = images[: job.judged], torch.tensor(job.labels[: job.judged])
    classifier.requires_grad_(False)
    trained = classifier.trained(job.boundary)
    norms = [module for top in trained for module in top.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in trained:
        module.requires_grad_(True)
    for bn in norms:
        bn.momentum = 1 - job.batch_norm_momentum
        bn.register_forward_pre_hook(count_entries)

    def state() -> dict[str, torch.Tensor]:
        """The arrays under the names of the network's own file, and the head's."""
        return {name.removeprefix("network."): array.clone() for name, array in classifier.state_dict().items()}

    def train(mode: bool) -> None:
        for module in trained:
            module.train(mode)

    with torch.no_grad():
        outputs = {"logits": classifier(images).numpy()}
    names = {id(p): name.removeprefix("network.") for name, p in classifier.named_parameters() if p.requires_grad}
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=job.learning_rate, momentum=job.momentum)
    start = state()
    train(True)
    for step in range(1, job.steps + 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(batch), labels)
        loss.backward()
        if step == 1:
            outputs["loss"] = loss.detach().numpy()
            outputs |= {f"gradients/{names[id(p)]}": p.grad.numpy().copy() for p in parameters}
        optimizer.step()
        take_out_bessels_correction(norms)
        if step in (1, job.steps):
            now = state()
            moved = [n for n in now if n in names.values() or (not torch.equal(now[n], start[n]) and "num_b" not in n)]
            outputs |= {f"step {step}/{name}": (now[name] - start[name]).numpy() for name in moved}
    train(False)
    with torch.no_grad():
        outputs["predictions"] = classifier(images).numpy()
    outputs["eta"] = score(outputs["predictions"], job.labels[: len(images)])
    return outputs


def versions() -> dict[str, str]:
    libraries = {library.__name__: library.__version__ for library in (torch, torchvision, timm, np)}
    return {**libraries, "python": platform.python_version()}


if __name__ == "__main__":
    main(make, run, versions)
