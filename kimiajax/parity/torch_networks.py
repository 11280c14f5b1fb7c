"""torchvision's and timm's VGG16 and Inception-v3, and which module's output is which block's.

What differs from Keras' networks: arrays lie as (out, in, height, width), VGG16 flattens channels first, Inception-v3's
batch normalisation scales, its average pools count the padding, and torchvision's takes ImageNet-normalised images,
which `transform_input` maps to [-1, 1].
"""

import timm
import torch
import torchvision
from timm.models.vgg import ConvMlp
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLS = {f"block{number}": f"features.{layer}" for number, layer in enumerate((4, 9, 16, 23, 30), start=1)}
MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
INCEPTION = {"stem": "maxpool2", **{f"mixed{number}": f"Mixed_{name}" for number, name in enumerate(MIXED)}}
VECTORS = ("fc1", "fc2", "pooled", "predictions")  # which a network may give as [n c 1 1]


def torchvision_vgg16(classes: int | None = 1000, side: int = 7) -> nn.Module:
    """`features.N`, `classifier.0`, `.3`, `.6`; `side` is the width of what is flattened, 7 at 224 x 224."""
    network = torchvision.models.vgg16(num_classes=classes or 1, init_weights=False)
    network.avgpool = nn.Identity()  # which makes 7 x 7 of any size
    if classes is None:
        network.classifier = nn.Identity()
    elif side != 7:
        network.classifier[0] = nn.Linear(512 * side**2, 4096)
    return network


def timm_vgg16(classes: int | None = 1000, side: int = 7) -> nn.Module:
    """`features.N`, `pre_logits.fc1`, `pre_logits.fc2`, `head.fc`: the dense layers are convolutions."""
    network = timm.create_model("vgg16", num_classes=classes or 1)
    if classes is None:
        network.pre_logits = network.head = nn.Identity()
    elif side != 7:
        network.pre_logits = ConvMlp(512, 4096, side)
    return network


def inception_v3(classes: int | None = 1000, auxiliary: bool = True, transform_input: bool = False) -> nn.Module:
    """torchvision's and timm's names; with `AuxLogits` as in torchvision's file and in timm's `tv_in1k`."""
    options = {"aux_logits": auxiliary, "transform_input": transform_input, "init_weights": False}
    network = torchvision.models.inception_v3(num_classes=classes or 1000, **options)
    if classes is None:
        network.fc = nn.Identity()
    return network


def modules_of(network: nn.Module) -> dict[str, str]:
    """Returns the name of the module whose output is a block's, by block."""
    if hasattr(network, "Mixed_5b"):
        dense = {"predictions": "fc"} if isinstance(network.fc, nn.Linear) else {}
        return {**INCEPTION, "pooled": "avgpool", **dense}
    if isinstance(getattr(network, "classifier", None), nn.Sequential):
        return {**POOLS, "fc1": "classifier.1", "fc2": "classifier.4", "predictions": "classifier.6"}
    if isinstance(getattr(network, "pre_logits", None), ConvMlp):
        return {**POOLS, "fc1": "pre_logits.act1", "fc2": "pre_logits.act2", "predictions": "head"}
    return POOLS


def blocks(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs a network and returns the output of each block."""
    taps: dict[str, torch.Tensor] = {}

    def keep(block: str, value: torch.Tensor) -> None:
        taps[block] = value.flatten(1) if block in VECTORS else value

    hooks = [
        network.get_submodule(module).register_forward_hook(lambda _, __, value, block=block: keep(block, value))
        for block, module in modules_of(network).items()
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return taps


def randomise(network: nn.Module, seed: int) -> None:
    """Every array random: kernels He-scaled, so that activations keep their size, variances in [0.5, 2], scales in
    [0.5, 1.5], the rest small. Constants would hide arrays that are exchanged."""
    generator = torch.Generator().manual_seed(seed)
    for name, array in network.state_dict().items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            continue
        if array.ndim > 1:
            array.normal_(0, (2 / array[0].numel()) ** 0.5, generator=generator)
        elif leaf == "running_var":
            array.uniform_(0.5, 2, generator=generator)
        elif name.endswith("bn.weight"):
            array.uniform_(0.5, 1.5, generator=generator)
        else:
            array.normal_(0, 0.1, generator=generator)
