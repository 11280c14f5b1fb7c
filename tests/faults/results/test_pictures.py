"""Pictures of a run that are lost or come from elsewhere."""

import base64
import shutil

import pytest
from PIL import Image

from faults.harness import ask, nothing_changes, refused
from faults.results.pages import Page
from faults.results.planting import folder_instead, reseal


def rewritten(path, change):
    path.write_bytes(change(path.read_bytes()))


def flipped(content):
    """A byte of the pixels, flipped."""
    place = content.index(b"IDAT") + 6
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def linked_out(path):
    """Puts the picture elsewhere, and a link to it in its place."""
    path.rename(path.parents[3] / "elsewhere.png")
    path.symlink_to("../../../elsewhere.png")


LOST = {
    "missing": lambda path: path.unlink(),
    "a folder": folder_instead,
    "empty": lambda path: rewritten(path, lambda content: b""),
    "half of it": lambda path: rewritten(path, lambda content: content[: len(content) // 2]),
    "without its end": lambda path: rewritten(path, lambda content: content[:-12]),
    "a bit flipped": lambda path: rewritten(path, flipped),
    "a web page": lambda path: path.write_text("<!doctype html><script>alert(1)</script>"),
    "an SVG": lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
    "a Git-LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a JPEG": lambda path: Image.new("L", (8, 8)).save(path, format="JPEG"),
    "a bomb": lambda path: Image.new("1", (10_000, 10_000)).save(path, format="PNG"),
    "a link out of the run": linked_out,
}


@pytest.mark.fault("records")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", LOST)
def test_a_lost_picture_is_left_out_and_named_in_the_report(pictured, tmp_path, undrawn, kind):
    folder = shutil.copytree(pictured, tmp_path / "run")
    lost = folder / "pictures/scans/scan-1.png"
    LOST[kind](lost)
    ended = ask("report", folder)
    assert (ended.status, ended.said) == (0, "")
    page = Page((folder / "report.html").read_text())
    assert page.says("Missing or damaged pictures are left out: pictures/scans/scan-1.png.")
    assert [image["alt"] for image in page.pictures("Training patch")] == [
        f"Training patch x of scan {k}" for k in (0, 2)
    ]
    if lost.is_file() and kind != "empty":
        assert base64.b64encode(lost.read_bytes()).decode() not in (folder / "report.html").read_text()


@pytest.mark.fault("records")
@pytest.mark.parametrize("rank", [0, 1])
def test_neighbours_are_shown_with_their_query_or_not_at_all(pictured, tmp_path, undrawn, rank):
    folder = shutil.copytree(pictured, tmp_path / "run")
    assert ask("report", folder).status == 0
    whole = Page((folder / "report.html").read_text())
    assert len(whole.pictures("Query")) == 1
    assert len(whole.pictures("Neighbour")) == 2
    assert not whole.says("Missing or damaged")
    (folder / f"pictures/nn_vgg16_cosine/{rank}.png").unlink()
    assert ask("report", folder).status == 0
    page = Page((folder / "report.html").read_text())
    assert len(page.pictures("Query")) == len(page.pictures("Neighbour")) == rank
    assert page.says(f"left out: pictures/nn_vgg16_cosine/{rank}.png.")


@pytest.mark.fault("records")
@pytest.mark.parametrize("file", ["../secret.png", "pictures/../../secret.png", "{tmp}/secret.png", "pictures/.x.png"])
def test_a_picture_from_outside_the_run_is_refused_even_where_the_program_wrote_so(pictured, tmp_path, file):
    folder = shutil.copytree(pictured, tmp_path / "run")
    shutil.copy(folder / "pictures/scans/scan-1.png", tmp_path / "secret.png")
    reseal(folder, lambda found: found["pictures"][1].update(file=file.format(tmp=tmp_path)))
    with nothing_changes(tmp_path):
        refused(ask("report", folder), folder / "results.json", "pictures[1].file", "run it anew")
