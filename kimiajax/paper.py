"""What the study and its data set state: the figures to reproduce, and nothing that is computed here.

Kieffer, Babaie, Kalra, Tizhoosh: "Convolutional Neural Networks for Histopathology Image Classification: Training vs.
Using Pre-Trained Networks", IPTA 2017. Data set: Babaie et al., CVPR Workshops 2017, arXiv:1705.07522.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of the paper's Table 1, as fractions in [0, 1] as printed there."""

    name: str
    eta_p: float
    eta_w: float
    eta_total: float


TABLE_1 = {
    "cnn": Published("CNN1", 0.6498, 0.6475, 0.4180),  # the printed factors multiply to 0.4207
    "fe_vgg16": Published("FE-VGG16", 0.6521, 0.6496, 0.4236),
    "tl_vgg16": Published("TL-VGG16", 0.6385, 0.6623, 0.4229),
    "fe_inception_v3": Published("FE-Inception-v3", 0.7094, 0.7124, 0.5054),
    "tl_inception_v3": Published("TL-Inception-v3", 0.7487, 0.7610, 0.5698),
}

NUM_SCANS = 24
TEST_PATCHES = 1325
TRAINING_PATCHES_PUBLISHED = {"the paper": 27_055, "Ahmed 2021": 23_916, "Kimia Path24C": 22_591}
TEST_PATCHES_PER_SCAN = (65, 65, 65, 75, 15, 40, 70, 50, 60, 60, 70, 70, 70, 60, 60, 30, 45, 45, 25, 25, 65, 65, 65, 65)
OFFICIAL_MD5 = "aeb54db89aaf28455e06770d20bd1307"  # of Kimia_Path24.h5, 29,409 MB


def is_kimia(test_patches: Sequence[int]) -> bool:
    """Whether data have Kimia Path24's test patches, by scan: the paper's figures are of these."""
    return tuple(test_patches) == TEST_PATCHES_PER_SCAN


@dataclass(frozen=True)
class Elsewhere:
    """What others report on these data, in per cent as they print it.

    Attributes:
        method: theirs.
        data: which release, and which patches.
        reported: their figures, and of what.
        source: where.
        comparable: whether it is a classification of the gray release's 1,325 test patches by the data set's scores.
    """

    method: str
    data: str
    reported: str
    source: str
    comparable: bool = False


ELSEWHERE = (
    Elsewhere(
        "local binary patterns",
        "gray",
        "66.11 / 62.52 / 41.33 (eta_p / eta_w / eta_total; quoted from memory, not verified)",
        "Babaie et al., arXiv:1705.07522",
        comparable=True,
    ),
    Elsewhere(
        "bag of visual words",
        "gray",
        "64.98 / 61.02 / 39.65 (eta_p / eta_w / eta_total; quoted from memory, not verified)",
        "Babaie et al., arXiv:1705.07522",
        comparable=True,
    ),
    Elsewhere(
        "deep barcodes; features; compressed features",
        "gray",
        "71.62; 68.91; 68.53 ('retrieval accuracy')",
        "arXiv:1805.08833",
    ),
    Elsewhere(
        "VGG16; Inception-v3; DenseNet-121 retrieval; binarised DenseNet",
        "colour (Path24C)",
        "92; 92.45; 95.92; 93.43",
        "arXiv:2102.07611",
    ),
    Elsewhere(
        "VGG16; Inception-v3, with concatenated features",
        "23,916 training patches",
        "eta_p 65 to 77; 74 to 79",
        "doi:10.3390/s21165361",
    ),
    Elsewhere("DenseNet-161; ResNet-50", "gray; colour, split not stated", "97.89; 98.87", "arXiv:1903.10035"),
    Elsewhere(
        "SE-ResNet50 with a multi-similarity loss",
        "colour, test patches retrieved among test patches",
        "97.89 / 97.00 / 94.95",
        "a public repository's log",
    ),
)
