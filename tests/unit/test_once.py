"""A shared folder is made once a test run, and a change of it is noticed."""

import os
import threading

import pytest
from support.once import assert_untouched, once


def test_of_several_who_ask_one_makes_it_and_all_find_it(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("content")

    threads = [threading.Thread(target=once, args=(tmp_path / "shared", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "shared"]
    assert (once(tmp_path / "shared", make) / "file").read_text() == "content"


def test_what_could_not_be_made_is_made_anew_by_the_next(tmp_path):
    def fails(folder):
        (folder / "half").write_text("")
        raise KeyError

    with pytest.raises(KeyError):
        once(tmp_path / "shared", fails)
    assert list(once(tmp_path / "shared", lambda folder: None).glob("half")) == []


CHANGES = {
    "another content": lambda folder: (folder / "file").write_text("other"),
    "written again": lambda folder: os.utime(folder / "file"),
    "a file more": lambda folder: (folder / "more").write_text(""),
    "a file less": lambda folder: (folder / "file").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_what_is_shared_is_noticed(tmp_path, change):
    folder = once(tmp_path / "shared", lambda folder: (folder / "file").write_text("content"))
    assert_untouched(tmp_path)
    CHANGES[change](folder)
    with pytest.raises(AssertionError, match="which all tests share"):
        assert_untouched(tmp_path)
