"""A manifest's patches as a folder of images, which is a source again."""

import posixpath
from dataclasses import replace
from pathlib import Path

from kimiajax.data.manifest import SPLITS, Manifest, Patch
from kimiajax.data.patch_arrays import check_of, marked
from kimiajax.data.sources.folder_layout import portable
from kimiajax.data.sources.image_files import encode_gray
from kimiajax.data.sources.image_folder import ESCAPED, HEADER, Folder
from kimiajax.data.sources.source import PatchSource, Source, Track, no_track, sha256_of
from kimiajax.data.survey import in_threads
from kimiajax.errors import UserError
from kimiajax.io.files import new_folder


def export_patches(source: Source, manifest: Manifest, out: Path, *, track: Track = no_track) -> Manifest:
    """Writes every patch as `SPLIT/sK/NAME.png`, 8-bit gray, and beside them `manifest.csv` with its header.

    Of a folder of classes it is `SPLIT/CLASS/NAME.png`. Where a name holds what some system does not take in a file's,
    all names are written as `portable` has it, and the header says so, by which the export is read back as it was.

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
    classes = source.names if isinstance(source, Folder) else [f"s{scan}" for scan in range(manifest.num_scans)]
    escaped = any(portable(part) != part for patch in manifest.patches for part in patch.patch_id.split("/"))
    about = {name: value for name, value in manifest.about.items() if name != ESCAPED}
    manifest = replace(manifest, about={**about, **({ESCAPED: True} if escaped else {})})

    def below(name: str) -> Path:
        return Path(*map(portable, name.split("/"))) if escaped else Path(name)

    with new_folder(out) as aside:
        for split in SPLITS:
            for name in classes:
                (aside / split / below(name)).mkdir(parents=True)

        def write(index: int) -> Patch:
            patch, pixels = manifest.patches[index], patches[index].pixels
            top = f"{patch.split}/{classes[patch.scan]}/"
            if not patch.patch_id.startswith(top) or posixpath.normpath(patch.patch_id) != patch.patch_id:
                raise UserError(f"{patch.patch_id!r} cannot be exported: names have to begin with {top}, without '..'")
            file = aside / f"{below(patch.patch_id)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_gray(pixels))
            return replace(patch, sha256=patch.sha256 or sha256_of(pixels))

        written = track(in_threads(write, range(len(patches))), "writing patches", len(patches), "patches")
        manifest = replace(manifest, patches=tuple(written))
        manifest.write(aside / Path(HEADER).with_suffix(".csv"))
    return manifest
