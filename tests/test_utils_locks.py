"""utils/locks.py beyond what the tests of run folders and grids see of it."""

import fcntl

import pytest
from ekg_tf.utils.errors import UserError
from ekg_tf.utils.locks import LOCK, Lock


def test_a_lock_is_held_until_it_is_closed(tmp_path):
    folder = tmp_path / "new" / "folder"
    with Lock(folder) as lock:
        with pytest.raises(UserError, match=r"another process is using .*\.lock"):
            Lock(folder)
        assert (folder / LOCK).exists()
    lock.close()  # harmless when repeated
    Lock(folder).close()


def test_only_a_file_of_its_own_is_forgotten(tmp_path):
    Lock(tmp_path).close(forget=True)
    assert not (tmp_path / LOCK).exists()
    Lock(tmp_path).close()
    Lock(tmp_path).close(forget=True)
    assert (tmp_path / LOCK).exists()


def test_a_file_and_a_place_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: give a folder"):
        Lock(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write in"):
        Lock(tmp_path / "file" / "below")


def test_a_disk_without_locks_is_only_warned_of(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    Lock(tmp_path).close()
    assert "has no file locks" in capsys.readouterr().out
