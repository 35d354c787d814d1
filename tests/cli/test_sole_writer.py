"""One process at a time holds a file, whatever its name and however the last one ended."""

import errno
import multiprocessing
import os

import pytest
from filelock import FileLock, Timeout, lock_descriptor

from causalmm.cli.sole_writer import sole_writer
from causalmm.errors import FailureError, RequestError


def hold(file, held, release):
    with sole_writer(file):
        held.set()
        release.wait()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `out.jsonl`."""
    spawn = multiprocessing.get_context("spawn")
    held, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path / "out.jsonl", held, release))
    other.start()
    assert held.wait(60)
    yield other, release
    other.kill()
    other.join()


def test_a_file_is_held_until_its_process_is_gone(tmp_path, holder):
    file = tmp_path / "out.jsonl"
    with pytest.raises(RequestError, match=f"another process is writing {file}: "):
        hold(file, None, None)
    with sole_writer(tmp_path / "other.jsonl"):
        pass
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(RequestError, match="another process is writing"):
        hold(tmp_path / "link", None, None)
    holder[0].kill()
    holder[0].join()
    assert (tmp_path / ".out.jsonl.lock").exists()
    with sole_writer(file):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["link"]


def test_a_file_is_free_when_its_process_has_ended(tmp_path, holder):
    other, release = holder
    release.set()
    other.join()
    assert other.exitcode == 0
    assert not list(tmp_path.iterdir())
    with sole_writer(tmp_path / "out.jsonl"):
        pass


def test_nobody_holds_a_lock_file_that_was_removed(tmp_path):
    """One that another process had opened before its holder removed it."""
    path = tmp_path / ".out.lock"
    with sole_writer(tmp_path / "out"):
        late = os.open(path, os.O_RDWR)
    assert lock_descriptor(late, blocking=False)
    with sole_writer(tmp_path / "out"):
        with pytest.raises(Timeout):
            FileLock(path, blocking=False).acquire()
        with pytest.raises(RequestError), sole_writer(tmp_path / "out"):
            pass
        assert path.exists()
    os.close(late)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="there is no folder"), sole_writer(tmp_path / "a" / "b"):
        pass


def test_what_a_file_system_says(tmp_path, monkeypatch, capsys):
    """No locks: a word, and on with it; anything else is a failure."""
    code = errno.ENOLCK

    def acquire(self):
        raise OSError(code, "says no")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with sole_writer(tmp_path / "out"):
        assert "its file system has no locks" in capsys.readouterr().err
    code = errno.EACCES
    with pytest.raises(FailureError, match=r"\.out\.lock cannot be written \(says no\)"):
        hold(tmp_path / "out", None, None)
