"""DICOM slides of drawn tissue, written by wsidicom: a file for each level, and for the label and the overview."""

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from wsidicom import WsiDicom
from wsidicom.codec import Encoder
from wsidicom.codec.settings import JpegSettings, Subsampling
from wsidicom.geometry import Point, Size, SizeMm
from wsidicom.instance import NumpyImageData, WsiDataset, WsiInstance
from wsidicom.metadata import (
    Equipment,
    Image,
    ImageType,
    Label,
    Objectives,
    OpticalPath,
    Patient,
    Pyramid,
    Series,
    Slide,
    SlideSample,
    Study,
    WsiMetadata,
)
from wsidicom.metadata.schema.dicom import WsiMetadataDicomSchema
from wsidicom.source import Source

from kimiajax.data.sources.dicom import WHOLE_SLIDE

TILE, SMALL = 128, 16
SETTINGS = JpegSettings(quality=95, subsampling=Subsampling.R444)


class Tiles(NumpyImageData):
    """An image in memory, in tiles, each pixel so many microns high and wide."""

    def __init__(self, rgb: np.ndarray, mpp: float):
        high, wide = (-(-side // TILE) * TILE - side for side in rgb.shape[:2])
        self._padded, self._mm = np.pad(rgb, ((0, high), (0, wide), (0, 0)), mode="edge"), mpp / 1000
        super().__init__(rgb)
        self._encoder = Encoder.create_for_settings(SETTINGS)

    @property
    def tile_size(self) -> Size:
        return Size(TILE, TILE)

    @property
    def pixel_spacing(self) -> SizeMm:
        return SizeMm(self._mm, self._mm)

    def get_decoded_tile(self, tile_point: Point, z: float, path: str, cache: bool = True) -> np.ndarray:
        row, col = tile_point.y * TILE, tile_point.x * TILE
        return self._padded[row : row + TILE, col : col + TILE]

    def get_encoded_tile(self, tile: Point, z: float, path: str) -> bytes:
        return self.encoder.encode(self.get_decoded_tile(tile, z, path))


class Drawn(Source):
    """A slide of one level, with a label and an overview."""

    annotation_instances = thumbnail_instances = ()

    def __init__(self, rgb: np.ndarray, mpp: float, metadata: WsiMetadata):
        super().__init__()
        small = NumpyImageData(np.full((64, 64, 3), 200, np.uint8))
        images = {ImageType.VOLUME: Tiles(rgb, mpp), ImageType.LABEL: small, ImageType.OVERVIEW: small}
        self._instances = {kind: self._instance(kind, data, metadata) for kind, data in images.items()}

    @staticmethod
    def _instance(kind: ImageType, data: NumpyImageData, metadata: WsiMetadata) -> WsiInstance:
        about = WsiMetadataDicomSchema().dump(metadata, kind)
        index = 0 if kind is ImageType.VOLUME else None
        return WsiInstance(WsiDataset.create_instance_dataset(about, kind, data, index), data)

    @cached_property
    def base_dataset(self) -> WsiDataset:
        return self._instances[ImageType.VOLUME].dataset

    @property
    def level_instances(self) -> list[WsiInstance]:
        return [self._instances[ImageType.VOLUME]]

    @property
    def label_instances(self) -> list[WsiInstance]:
        return [self._instances[ImageType.LABEL]]

    @property
    def overview_instances(self) -> list[WsiInstance]:
        return [self._instances[ImageType.OVERVIEW]]

    def close(self) -> None:
        pass


def write_dicom(
    folder: Path, gray: np.ndarray, mpp: float = 0.5, levels: int = 1, sub_images: bool = True, stem: str = "instance"
) -> list[Path]:
    """Writes the files of a slide into a folder, which may hold others already; returns their paths, levels first."""
    metadata = WsiMetadata(
        study=Study(uid=generate_uid()),
        series=Series(uid=generate_uid()),
        patient=Patient(name="Drawn^Tissue"),
        equipment=Equipment(manufacturer="kimiajax"),
        slide=Slide(identifier="slide", samples=[SlideSample("sample", uid=generate_uid())]),
        pyramid=Pyramid(
            image=Image(),
            uid=generate_uid(),
            optical_paths=[OpticalPath("0", objective=Objectives(objective_power=20))],
        ),
        label=Label(text="slide"),
        frame_of_reference_uid=generate_uid(),
        dimension_organization_uids=[generate_uid()],
    )
    rgb = np.repeat(gray[..., None], 3, axis=2)
    options = {"include_labels": sub_images, "include_overviews": sub_images, "add_missing_levels": levels > 1}
    with TemporaryDirectory(dir=folder.parent) as aside:  # an empty folder is asked for
        with WsiDicom(Drawn(rgb, mpp, metadata), source_owned=True) as slide:
            files = slide.save(aside, **options)
        folder.mkdir(exist_ok=True)
        return [Path(file).rename(folder / f"{stem}{number}.dcm") for number, file in enumerate(files)]


def _nested(depth):
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2"
    if depth:
        item.ReferencedImageSequence = [_nested(depth - 1)]
        item["ReferencedImageSequence"].is_undefined_length = True
    item.is_undefined_length_sequence_item = True
    return item


def write_head(path, syntax=ExplicitVRLittleEndian, kind=WHOLE_SLIDE, depth=2, **values):
    """A DICOM file of two frames in the syntax asked for, with sequences so deep and other values."""
    content = Dataset()
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = syntax
    content.file_meta.MediaStorageSOPClassUID, content.file_meta.MediaStorageSOPInstanceUID = kind, "1.2.3"
    content.ImageType, content.SOPClassUID, content.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "VOLUME"], kind, "1.2.3"
    content.ReferencedImageSequence = [_nested(depth), _nested(0)]
    content["ReferencedImageSequence"].is_undefined_length = True
    content.StudyInstanceUID, content.SeriesInstanceUID = "1.2.4", "1.2.5"
    content.SamplesPerPixel, content.NumberOfFrames, content.Rows, content.Columns = 3, 2, SMALL, SMALL
    content.BitsAllocated = 8
    content.PixelData = bytes(3 * 2 * SMALL * SMALL)
    content["PixelData"].VR = "OB"
    for name, value in values.items():
        setattr(content, name, value)
    pydicom.dcmwrite(path, content, enforce_file_format=True)
    return path
