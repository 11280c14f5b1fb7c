"""What others do with pixels: Keras' generator, OpenCV's warp, scipy's as the judge; and Pillow's resizing."""

from pathlib import Path
from typing import Any

import numpy as np

from ..contender import Work, serve


def augment(job: dict[str, Any]) -> Work:
    with np.load(Path(job["folder"]) / "patches.npz") as arrays:
        given = {name: arrays[name] for name in arrays.files}
    images, mirrored = given["images"].astype(np.float32), given["mirrored"]
    side, about = images.shape[1], {}
    centre = (side - 1) / 2
    matrices = given["matrices"] / 2**16  # of (row, column)
    offsets = [centre - matrix @ [centre, centre] for matrix in matrices]
    if job.get("by") == "scipy":
        from scipy.ndimage import affine_transform

        def run() -> np.ndarray:
            warped = [
                affine_transform(image.astype(np.float64), matrix, offset, order=1, mode="nearest")
                for image, matrix, offset in zip(images, matrices, offsets)
            ]
            return np.stack([image[:, ::-1] if turned else image for image, turned in zip(warped, mirrored)])

    elif job.get("by") == "opencv":
        import cv2

        about = {"opencv": cv2.__version__, "threads": cv2.getNumThreads()}
        # OpenCV takes (x, y), and mirrors in the same matrix.
        both = []
        for matrix, offset, turned in zip(matrices, offsets, mirrored):
            columns = np.array([[1, 0, 0], [0, -1, side - 1]]) if turned else np.array([[1, 0, 0], [0, 1, 0]])
            whole = np.vstack([np.hstack([matrix, offset[:, None]]), [0, 0, 1]]) @ np.vstack([columns, [0, 0, 1]])
            both.append(whole[[1, 0]][:, [1, 0, 2]])
        options = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}

        def run() -> np.ndarray:
            return np.stack([cv2.warpAffine(i, m, (side, side), **options) for i, m in zip(images, both)])

    else:
        import keras
        from keras.src.legacy.preprocessing.image import ImageDataGenerator

        about = {"keras": keras.__version__}
        generator, batch = ImageDataGenerator(), images[..., None]
        transforms = [
            {"shear": float(shear), "zx": float(zx), "zy": float(zy), "flip_horizontal": bool(turned)}
            for shear, (zx, zy), turned in zip(given["shear"], given["zoom"], mirrored)
        ]

        def run() -> np.ndarray:
            return np.stack([generator.apply_transform(x, each) for x, each in zip(batch, transforms)])[..., 0]

    return Work(run, lambda y: {"images": y / 255}, about=about)


def resize(job: dict[str, Any]) -> Work:
    import PIL
    from PIL import Image

    patches = [Image.fromarray(patch) for patch in np.load(Path(job["folder"]) / "patches.npy")]
    size = (job["size"], job["size"])

    def run() -> np.ndarray:
        return np.stack([np.asarray(patch.resize(size, Image.Resampling.BOX)) for patch in patches])

    return Work(run, lambda y: {"images": y / 255}, about={"pillow": PIL.__version__})


WORKLOADS = {"augment": augment, "resize": resize}

if __name__ == "__main__":
    serve(lambda job: WORKLOADS[job["workload"]](job))
