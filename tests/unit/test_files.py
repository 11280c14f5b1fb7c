import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kimiajax.io.files import new_file, new_folder, put_folder, scratch_folder
from kimiajax.io.locks import host


def test_a_folder_appears_whole_or_not_at_all_and_takes_the_place_of_an_earlier_one(tmp_path):
    with new_folder(tmp_path / "run") as aside:
        (aside / "a").write_text("1")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "run") as aside:
        (aside / "a").write_text(str(1 / 0))
    assert (tmp_path / "run" / "a").read_text() == "1"
    with new_folder(tmp_path / "run") as aside:
        (aside / "b").write_text("3")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["b"]


def test_a_file_that_fails_leaves_the_earlier_one(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "x") as aside:
        aside.write_text(str(1 / 0))
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_only_this_programs_leftovers_of_dead_processes_of_this_machine_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover = f".w.{host()}.{dead.pid}.0123abcd.kimiajax-partial"
    kept = [".w.backup", f".w.{dead.pid}", f".w.elsewhere-x.{dead.pid}.0123abcd.kimiajax-partial"]
    kept.append(f".w.{host()}.{os.getpid()}.0123abcd.kimiajax-partial")
    for name in (leftover, *kept):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "w"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "w"])


def test_two_writers_of_one_folder_do_not_disturb_each_other(tmp_path):
    both = threading.Barrier(2)

    def write(text):
        with new_folder(tmp_path / "w") as aside:
            (aside / "a").write_text(text)
            both.wait()

    threads = [threading.Thread(target=write, args=(text,)) for text in ("1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "w" / "a").read_text() in ("1", "2")


def test_many_may_put_the_same_folder_at_once(tmp_path):
    def put(k):
        for _ in range(40):
            with scratch_folder(tmp_path / "cache" / "new") as aside:
                (aside / "array").write_bytes(b"x")
                put_folder(aside, tmp_path / "cache" / "key")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["key"]
    assert (tmp_path / "cache" / "key" / "array").read_bytes() == b"x"
