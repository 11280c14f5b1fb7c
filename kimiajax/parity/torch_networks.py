"""torchvision's and timm's VGG16 and Inception-v3 as plain torch modules with the same names of arrays.

Written here because no build of torchvision is at hand everywhere. What differs from Keras' networks: arrays lie as
(out, in, height, width), VGG16 flattens channels first, Inception-v3's batch normalisation scales, its average pools
count the padding, and torchvision's takes ImageNet-normalised images, which `transform_input` maps to [-1, 1].
"""

import torch
from torch import nn
from torch.nn import functional

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _vgg16_features() -> nn.Sequential:
    layers, channels = [], 3
    for block in VGG16_BLOCKS:
        for features in block:
            layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()]
            channels = features
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class TorchvisionVGG16(nn.Module):
    """`features.N`, `classifier.0`, `.3`, `.6`; `side` is the width of what is flattened, 7 at 224 x 224."""

    def __init__(self, classes: int | None = 1000, side: int = 7):
        super().__init__()
        self.features = _vgg16_features()
        if classes:
            self.classifier = nn.Sequential(
                nn.Linear(512 * side * side, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(4096, classes),
            )

    def blocks(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        taps = _run_vgg16(self.features, x)
        if hasattr(self, "classifier"):
            x = taps["block5"].flatten(1)
            for name, layers in (("fc1", self.classifier[:2]), ("fc2", self.classifier[2:5])):
                x = taps[name] = layers(x)
            taps["predictions"] = self.classifier[5:](x)
        return taps


class _ConvMlp(nn.Module):
    def __init__(self, side: int):
        super().__init__()
        self.fc1 = nn.Conv2d(512, 4096, side)
        self.fc2 = nn.Conv2d(4096, 4096, 1)


class _Head(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.fc = nn.Linear(4096, classes)


class TimmVGG16(nn.Module):
    """`features.N`, `pre_logits.fc1`, `pre_logits.fc2`, `head.fc`: the dense layers are convolutions."""

    def __init__(self, classes: int | None = 1000, side: int = 7):
        super().__init__()
        self.features = _vgg16_features()
        if classes:
            self.pre_logits = _ConvMlp(side)
            self.head = _Head(classes)

    def blocks(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        taps = _run_vgg16(self.features, x)
        if hasattr(self, "head"):
            x = functional.relu(self.pre_logits.fc1(taps["block5"]))
            taps["fc1"] = x.flatten(1)
            x = functional.relu(self.pre_logits.fc2(x))
            taps["fc2"] = x.flatten(1)
            taps["predictions"] = self.head.fc(x.mean((2, 3)))
        return taps


def _run_vgg16(features: nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
    taps = {}
    for layer in features:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            taps[f"block{len(taps) + 1}"] = x
    return taps


class BasicConv2d(nn.Module):
    def __init__(self, channels: int, features: int, kernel: int | tuple[int, int], **options: object):
        super().__init__()
        self.conv = nn.Conv2d(channels, features, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(features, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1)  # counts the padding, torch's default


class InceptionA(nn.Module):
    def __init__(self, channels: int, pooled: int):
        super().__init__()
        self.branch1x1 = BasicConv2d(channels, 64, 1)
        self.branch5x5_1 = BasicConv2d(channels, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(channels, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class InceptionB(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3 = BasicConv2d(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    def __init__(self, channels: int, c: int):
        super().__init__()
        wide, tall = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = BasicConv2d(channels, 192, 1)
        self.branch7x7_1 = BasicConv2d(channels, c, 1)
        self.branch7x7_2 = BasicConv2d(c, c, **wide)
        self.branch7x7_3 = BasicConv2d(c, 192, **tall)
        self.branch7x7dbl_1 = BasicConv2d(channels, c, 1)
        self.branch7x7dbl_2 = BasicConv2d(c, c, **tall)
        self.branch7x7dbl_3 = BasicConv2d(c, c, **wide)
        self.branch7x7dbl_4 = BasicConv2d(c, c, **tall)
        self.branch7x7dbl_5 = BasicConv2d(c, 192, **wide)
        self.branch_pool = BasicConv2d(channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class InceptionD(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3_1 = BasicConv2d(channels, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(channels, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        wide, tall = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = BasicConv2d(channels, 320, 1)
        self.branch3x3_1 = BasicConv2d(channels, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, **wide)
        self.branch3x3_2b = BasicConv2d(384, 384, **tall)
        self.branch3x3dbl_1 = BasicConv2d(channels, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, **wide)
        self.branch3x3dbl_3b = BasicConv2d(384, 384, **tall)
        self.branch_pool = BasicConv2d(channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        outputs = [
            self.branch1x1(x),
            *(self.branch3x3_2a(single), self.branch3x3_2b(single)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(outputs, 1)


class InceptionAux(nn.Module):
    """The auxiliary classifier, which training from scratch used; it has no part in what is compared."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv0 = BasicConv2d(768, 128, 1)
        self.conv1 = BasicConv2d(128, 768, 5)
        self.fc = nn.Linear(768, classes)


class InceptionV3(nn.Module):
    """torchvision's and timm's names; with `AuxLogits` as in torchvision's file and in timm's `tv_in1k`."""

    def __init__(self, classes: int | None = 1000, auxiliary: bool = True, transform_input: bool = False):
        super().__init__()
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        if auxiliary:
            self.AuxLogits = InceptionAux(classes or 1000)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        if classes:
            self.fc = nn.Linear(2048, classes)

    def input(self, x: torch.Tensor) -> torch.Tensor:
        """What the first convolution sees."""
        if not self.transform_input:
            return x
        mean, std = (x.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return x * (std / 0.5) + (mean - 0.5) / 0.5

    def blocks(self, x: torch.Tensor, last: str = "predictions") -> dict[str, torch.Tensor]:
        """Every block's output, up to the last that is asked for."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        taps = {"stem": functional.max_pool2d(x, 3, 2)}
        x = taps["stem"]
        for number, letter in enumerate(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")):
            x = taps[f"mixed{number}"] = getattr(self, f"Mixed_{letter}")(x)
            if last in taps:
                return taps
        x = taps["pooled"] = x.mean((2, 3))
        if hasattr(self, "fc"):
            taps["predictions"] = self.fc(x)
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
