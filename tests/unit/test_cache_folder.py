"""Where the cache lies for users whom the system knows no home of."""

import os
import tempfile

import pooch
import pytest

from kimiajax.cli.main import main
from kimiajax.errors import UserError
from kimiajax.io.cache import default_cache


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user without HOME and without an entry among the users; the temporary folder."""

    def nowhere(project):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(pooch, "os_cache", nowhere)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_home_serves_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "kimiajax"


def test_without_a_home_a_folder_of_ones_own_serves_and_is_told(homeless):
    with pytest.warns(UserWarning, match="no home folder.* goes to .*; --cache names another folder"):
        folder = default_cache()
    assert folder == homeless / f"kimiajax-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.warns(UserWarning, match="no home folder"):
        assert default_cache() == folder  # and serves again


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_in_which_nothing_can_be_made_is_named(home, monkeypatch, tmp_path, homeless):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pooch, "os_cache", lambda project: str(tmp_path / home / project))
    with pytest.warns(UserWarning, match=r"file.* cannot be made \(Not a directory\)"):
        assert default_cache().parent == homeless


def test_a_home_that_cannot_be_written_is_named(monkeypatch, tmp_path, homeless):
    monkeypatch.setattr(pooch, "os_cache", lambda project: str(tmp_path / "home" / project))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.warns(UserWarning, match=r"home/kimiajax cannot be written"):
        assert default_cache().parent == homeless


@pytest.mark.parametrize("fault", ["another's", "open to others", "a link", "a file"])
def test_a_folder_that_others_may_have_filled_is_refused(fault, homeless, monkeypatch):
    folder = homeless / f"kimiajax-{os.getuid()}"
    if fault == "a link":
        (homeless / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(homeless / "elsewhere")
    elif fault == "a file":
        folder.touch(mode=0o600)
    else:
        folder.mkdir(mode=0o700)
    if fault == "open to others":
        folder.chmod(0o755)
    if fault == "another's":
        own = os.getuid()
        folder.rename(homeless / f"kimiajax-{own + 1}")
        monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(UserError, match=r"is not this user's alone; name a folder with --cache"):
        default_cache()


def test_a_command_without_any_folder_names_the_flag(homeless, monkeypatch, scans, capsys):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in", "/tmp")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert main(["data", "explain", "--scans", str(scans)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kimiajax: this user has no home folder")
    assert line.endswith("name a folder with --cache")
