import sys
import time

import kimiajax.runtime.progress as progress
from kimiajax.runtime.progress import Bars, Download, Lines, Silent


def test_piped_progress_tells_rate_and_time_left_now_and_then_and_the_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    assert list(Lines().track(slow(6), "features", 11, "patches", step=2)) == list(range(6))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("features: 4 of 11 patches, ")
    assert lines[0].endswith("s left")
    assert lines[-1].startswith("features: 11 patches in ")
    assert all("\r" not in line and "\x1b" not in line for line in lines)


def slow(count):
    for item in range(count):
        time.sleep(0.012)
        yield item


def test_a_terminal_gets_bars_and_a_pipe_gets_lines(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress.for_terminal(), Bars)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert type(progress.for_terminal()) is Lines


def test_bars_pass_every_item_on(capsys):
    assert list(Bars().track(range(5), "features", 9, "patches", step=2)) == list(range(5))


def test_library_functions_show_nothing(capsys):
    assert list(Silent().track(range(3), "features", 3)) == [0, 1, 2]
    Silent().say("nothing")
    assert capsys.readouterr() == ("", "")


def test_a_download_tells_how_far_it_is(capsys):
    bar = Download(Lines(), "downloading weights.h5")
    bar.total = 64 * 2**20
    for _ in range(64):
        bar.update(2**20)
    bar.reset()  # as pooch ends
    bar.update(bar.total)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "downloading weights.h5: 32 of 64 MiB",
        "downloading weights.h5: 64 of 64 MiB",
    ]
