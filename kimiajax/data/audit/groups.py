"""The check that no patient, or slide, has patches in training and in test, where a file says whose each patch is."""

from kimiajax.data.audit.checks import FAILED, NOT_APPLICABLE, PASSED, Check
from kimiajax.data.manifest import Manifest
from kimiajax.data.sources.image_folder import Folder
from kimiajax.data.sources.source import Source
from kimiajax.text import first_few, quoted

NAME = "groups"


def check_groups(source: Source, manifest: Manifest) -> Check:
    """That no group has patches in training and in test; of folders of images, with the groups that they were given."""
    found = source.groups_in(manifest.patches) if isinstance(source, Folder) else None
    if found is None:
        return Check(NAME, NOT_APPLICABLE, "nothing says which patches are of one patient or slide", of="patches")
    column, shared = found["column"], found["shared"]
    counts = f"{found['train']:,} in training and {found['test']:,} in test"
    if shared:
        detail = (
            f"{column}: {len(shared)} are both in training and in test: {first_few(map(quoted, shared))} ({counts})"
        )
        return Check(NAME, FAILED, detail, shared, of="patches")
    return Check(NAME, PASSED, f"{column}: {counts}, none in both", of="patches")
