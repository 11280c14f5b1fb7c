"""How many microns a pixel is, from the properties that OpenSlide gives and from what a person states."""

from pathlib import Path

import pytest
from support.slides import ome

from kimiajax.data.sources.resolution import resolution_of, stated_for
from kimiajax.errors import UserError

SIZE = (512, 448)
TILED = {"openslide.vendor": "generic-tiff", "tiff.ResolutionUnit": "none"}
SVS = {"openslide.vendor": "aperio", "tiff.ResolutionUnit": "none"}
NAMES = [("a", Path("a.svs")), ("b", Path("b.tif")), ("c", Path("c/instance0.dcm"))]


def tags(x, unit="centimeter", y=None):
    return {"tiff.XResolution": str(x), "tiff.YResolution": str(x if y is None else y), "tiff.ResolutionUnit": unit}


def described(text):
    return {**TILED, "tiff.ImageDescription": text}


def scanned(x, y=None):
    return {**SVS, "openslide.mpp-x": str(x), "openslide.mpp-y": str(x if y is None else y)}


def physical(x, unit=None, y=None):
    units = f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    return described(ome(f'PhysicalSizeX="{x}" PhysicalSizeY="{x if y is None else y}" {units}'))


def imagej(unit, per_unit):
    return {**described(f"ImageJ=1.54f\nunit={unit}\nloop=false\n"), **tags(per_unit, "none")}


TWO_IMAGES = (
    '<OME><Image><Pixels SizeX="64" SizeY="64" PhysicalSizeX="4" PhysicalSizeY="4"/></Image>'
    '<Image><Pixels SizeX="512" SizeY="448" PhysicalSizeX="0.5" PhysicalSizeY="0.5"/></Image></OME>'
)


@pytest.mark.parametrize(
    ("properties", "mpp", "place"),
    [
        (scanned(0.2522), 0.2522, "file"),
        (scanned("0,25"), 0.25, "file"),
        ({**scanned(0.25), **tags(20000)}, 0.25, "file"),
        ({**scanned(0), **tags(20000)}, 0.5, "tiff"),
        ({**SVS, **tags(20000)}, 0.5, "tiff"),
        ({**TILED, **tags(50800, "inch")}, 0.5, "tiff"),
        (physical(0.25), 0.25, "ome"),
        (physical(250, "nm"), 0.25, "ome"),
        (physical(0.00025, "mm"), 0.25, "ome"),
        (physical(0.25, "\u03bcm"), 0.25, "ome"),
        ({**physical(0.25), **tags(72, "inch")}, 0.25, "ome"),
        ({**physical(0.25), **tags(40000)}, 0.25, "ome"),
        (described(TWO_IMAGES), 0.5, "ome"),
        (imagej("micron", 4), 0.25, "imagej"),
        (imagej("\u00b5m", 4), 0.25, "imagej"),
        (imagej("\\u00B5m", 4), 0.25, "imagej"),
        (imagej("\ufffdm", 4), 0.25, "imagej"),
        (imagej("MM", 4000), 0.25, "imagej"),
        (imagej("inch", 50800), 0.5, "imagej"),
        ({**imagej("micron", 4), "tiff.ResolutionUnit": "inch"}, 0.25, "imagej"),
    ],
)
def test_what_a_file_says_is_found_where_it_says_it(properties, mpp, place):
    found = resolution_of(properties, SIZE, None)
    assert (found.mpp, found.place, found.said) == (pytest.approx(mpp), place, None)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (TILED, "does not say how many microns a pixel is; state it: --slide-mpp MICRONS"),
        ({**TILED, **tags(20000, "none")}, "does not say"),
        ({**TILED, **tags(0)}, "inf microns, which no pixel is"),
        ({**TILED, **tags("nan")}, "nan microns, which no pixel is"),
        ({**TILED, **tags(20000, y=10000)}, "0.5 by 1 microns; they must be square"),
        ({**TILED, **tags(28.35)}, r"72 pixels per inch \(352.7 microns\)"),
        (scanned(25), "25 microns, which no slide"),
        (scanned("inf"), "which no pixel is"),
        (scanned(0.5, 0.25), "0.5 by 0.25 microns"),
        ({**scanned(0.5, 0.25), **tags(20000)}, "0.5 by 0.25 microns"),
        ({**physical(0.25), **tags(20000)}, r"0.25 microns \(ome\) and 0.5 \(tiff\)"),
        (physical(1, "pixel"), "does not say"),
        (described("<OME><Image>"), "does not say"),
        (described('<!DOCTYPE x [<!ENTITY a "aa">]><OME/>'), "does not say"),
        (imagej("pixel", 4), "does not say"),
        ({**imagej("pixel", 4), "tiff.ResolutionUnit": "inch"}, "6350 microns, which no slide"),
        ({**SVS, "openslide.objective-power": "40"}, "power 40, which is about 0.25 microns; if .* --slide-mpp 0.25"),
        ({**SVS, "aperio.AppMag": "0"}, "does not say how many microns a pixel is; state it"),
        ({**scanned(0), "hamamatsu.SourceLens": "20"}, "0 microns, which no pixel is; .* --slide-mpp 0.5"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_state(properties, message):
    with pytest.raises(UserError, match=message):
        resolution_of(properties, SIZE, None)


@pytest.mark.parametrize(
    ("properties", "said", "contradicts"),
    [(TILED, None, False), (scanned(352.8), None, False), (scanned(0.501), 0.501, False), (scanned(0.25), 0.25, True)],
)
def test_what_is_stated_holds_and_what_the_file_says_is_kept_beside(properties, said, contradicts):
    found = resolution_of(properties, SIZE, 0.5)
    assert (found.mpp, found.place, found.said, found.contradicts) == (0.5, "--slide-mpp", said, contradicts)


def test_slides_are_stated_by_file_or_by_name_and_others_keep_what_they_say(tmp_path):
    (tmp_path / "mpp.csv").write_text("slide;mpp;scanner\na.svs;0,25;X\nc;0,5;Y\n")
    assert stated_for(tmp_path / "mpp.csv", NAMES) == {"a": 0.25, "c": 0.5}
    assert stated_for(0.5, NAMES) == dict.fromkeys("abc", 0.5)
    assert stated_for(None, NAMES) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,mpp\nd,0.5\n", r"line 2: there is no slide 'd' \(there are a, b, c\)"),
        ("slide,mpp\na,0.5\n\na.svs,0.5\n", "line 4: names the slide 'a.svs' again, after line 2"),
        ("slide,mpp\n,0.5\n", "line 2: names no slide"),
        ("slide,mpp\na,\n", "line 2: mpp '' of a is no number of microns above 0"),
        ("slide,mpp\na,0.0\n", "mpp '0.0' of a"),
        ("slide,mpp\na,-1\n", "mpp '-1' of a"),
        ("slide,mpp\na,nan\n", "mpp 'nan' of a"),
        ("slide,mpp\na,1e999\n", "mpp '1e999' of a"),
        ("slide,mpp\na,1e-999\n", "mpp '1e-999' of a"),
        ("name,mpp\na,0.5\n", "has no column slide .* name the slides there"),
    ],
)
def test_a_table_that_states_something_else_is_refused_by_its_line(tmp_path, text, message):
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        stated_for(tmp_path / "mpp.csv", NAMES)


def test_a_name_of_several_slides_and_pixels_that_no_slide_has_are_refused(tmp_path):
    slides = [("p0/a", Path("p0/a.svs")), ("p1/a", Path("p1/a.svs"))]
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\np0/a.svs,0.25\np1/a,0.5\n")
    assert stated_for(table, slides) == {"p0/a": 0.25, "p1/a": 0.5}
    table.write_text("slide,mpp\na.svs,0.25\n")
    with pytest.raises(UserError, match=r"line 2: 'a.svs' may be any of p0/a, p1/a; name one of these"):
        stated_for(table, slides)
    table.write_text("slide,mpp\np0/a,250\n")
    with pytest.raises(UserError, match=r"line 2: mpp 250: no slide has such pixels"):
        stated_for(table, slides)
    with pytest.raises(UserError, match=r"--slide-mpp 0.0025: no slide has such pixels"):
        stated_for(0.0025, slides)
