"""A manifest's patches as a folder of images, which is a source again."""

from dataclasses import replace
from pathlib import Path

from kimiajax.data.manifest import SPLITS, Manifest, Patch
from kimiajax.data.patch_arrays import check_of, marked
from kimiajax.data.sources.image_files import encode_gray
from kimiajax.data.sources.image_folder import HEADER
from kimiajax.data.sources.source import PatchSource, Source, Track, no_track, sha256_of
from kimiajax.data.survey import in_threads
from kimiajax.errors import UserError
from kimiajax.io.files import new_folder


def export_patches(source: Source, manifest: Manifest, out: Path, *, track: Track = no_track) -> Manifest:
    """Writes every patch as `SPLIT/sK/NAME.png`, 8-bit gray, and beside them `manifest.csv` with its header.

    Args:
        source: where the patches are.
        manifest: which they are.
        out: the folder to write; a failed export leaves none.

    Returns:
        The manifest with all digests.

    Raises:
        UserError: the folder exists already, the manifest is of another source, or a patch cannot be read.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out, or remove it")
    check_of(source, manifest)
    manifest = marked(manifest, source)
    patches = PatchSource(source, manifest.patches)
    with new_folder(out) as aside:
        for split in SPLITS:
            for scan in range(manifest.num_scans):
                (aside / split / f"s{scan}").mkdir(parents=True)

        def write(index: int) -> Patch:
            patch, pixels = manifest.patches[index], patches[index].pixels
            top = aside / patch.split / f"s{patch.scan}"
            file = aside / f"{patch.patch_id}.png"
            if top.resolve() not in file.resolve().parents:
                raise UserError(
                    f"{patch.patch_id!r} cannot be exported: names have to begin with {patch.split}/s{patch.scan}/"
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_gray(pixels))
            return replace(patch, sha256=patch.sha256 or sha256_of(pixels))

        written = track(in_threads(write, range(len(patches))), "writing patches", len(patches), "patches")
        manifest = replace(manifest, patches=tuple(written))
        manifest.write(aside / Path(HEADER).with_suffix(".csv"))
    return manifest
