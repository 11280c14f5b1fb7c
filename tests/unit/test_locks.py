import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kimiajax.errors import UserError
from kimiajax.io import locks
from kimiajax.io.locks import LOCK, Owner, host, only_writer

HOLDS = """
import sys, time
from pathlib import Path
from kimiajax.io.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    """A holder elsewhere is taken for dead after half a second."""
    monkeypatch.setattr(locks, "PATIENCE", 0.5)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SETTLE", 0.2)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows no locks."""
    monkeypatch.setattr(locks, "_lock", lambda file: None)


def owned(folder, **changes):
    """A folder that a process left without letting go."""
    folder.mkdir(exist_ok=True)
    about = {"host": host(), "pid": os.getpid(), "since": "2017-11-28T09:00:00+00:00", "born": 1, **changes}
    (folder / LOCK).write_text(json.dumps(about))


def test_a_folder_takes_one_writer_at_a_time_and_says_who_it_is(tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError) as told, only_writer(tmp_path):
        pass
    assert f"process {os.getpid()} on {host()}, since 20" in str(told.value)
    assert str(told.value).endswith("wait for it, or choose another --out")
    with only_writer(tmp_path, say=pytest.fail):
        pass
    assert (tmp_path / LOCK).read_text() == ""


def test_a_killed_holder_is_named_and_its_folder_taken_over(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on "), only_writer(tmp_path):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    said = []
    with only_writer(tmp_path, say=said.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert len(said) == 1
    assert f"taken over from process {holder.pid} on {host()}" in said[0]


def test_where_no_locks_are_known_a_holder_counts_by_its_number_and_its_birth(tmp_path, no_locks):
    mine = Owner.me()
    owned(tmp_path, born=mine.born)
    with pytest.raises(UserError, match="another run writes there"), only_writer(tmp_path):
        pass
    owned(tmp_path, born=mine.born - 1)  # an earlier process of the same number
    said = []
    with only_writer(tmp_path, say=said.append):
        assert "taken over" in said[0]


def test_a_holder_elsewhere_lives_while_it_touches_the_file(tmp_path, quick):
    owned(tmp_path, host="elsewhere")
    ended, said = threading.Event(), []
    holder = Owner(**json.loads((tmp_path / LOCK).read_text()))
    beating = threading.Thread(target=locks._beat, args=(tmp_path / LOCK, holder, ended))
    beating.start()
    with pytest.raises(UserError, match=r"process .* on elsewhere"), only_writer(tmp_path, say=said.append):
        pass
    ended.set()
    beating.join()
    assert "watching for" in said[0]
    with only_writer(tmp_path, say=said.append):
        assert "taken over from process" in said[-1]


def test_who_was_suspended_and_lost_the_folder_neither_touches_nor_empties_its_new_holders_file(
    tmp_path, quick, no_locks
):
    with only_writer(tmp_path):
        owned(tmp_path, host="elsewhere")
        written = (tmp_path / LOCK).stat().st_mtime_ns
        time.sleep(0.3)
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"
    assert (tmp_path / LOCK).stat().st_mtime_ns == written


def test_of_two_that_take_a_folder_at_once_where_no_locks_are_known_one_gets_it(tmp_path, quick, no_locks, monkeypatch):
    settle = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (owned(tmp_path, host="elsewhere"), settle(seconds)))
    with pytest.raises(UserError, match=r"took it at the same time \(process .* on elsewhere"), only_writer(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"


def test_a_disk_that_is_full_when_a_folder_is_taken_is_told_with_the_file(tmp_path, monkeypatch):
    def full(file, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks, "_write", full)
    with pytest.raises(OSError, match="No space left") as told, only_writer(tmp_path):
        pass
    assert told.value.filename == str(tmp_path / LOCK)


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_clock_that_is_wrong_makes_no_holder_dead_nor_alive(tmp_path, quick, year):
    owned(tmp_path, host="elsewhere", since=f"{year}-01-01T00:00:00+00:00")
    moment = (year - 1970) * 365 * 86400
    os.utime(tmp_path / LOCK, (moment, moment))
    said = []
    with only_writer(tmp_path, say=said.append):
        assert "taken over" in said[-1]


def test_who_holds_a_folder_touches_its_file(tmp_path, quick):
    with only_writer(tmp_path):
        before = (tmp_path / LOCK).stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / LOCK).stat().st_mtime_ns > before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"host": 1, "pid": "7", "since": 0, "born": 0}'])
def test_a_lock_that_names_nobody_is_free(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with only_writer(tmp_path, say=pytest.fail):
        pass
