"""One process at a time writes a file that is resumed.

Everything that appends to a file, or reads how far it is and resumes there, holds its lock
meanwhile: .FILE.lock beside it, which is there while the file is written (or was, when a process
was killed: the next one takes it over). Tests: tests/cli/test_sole_writer.py.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from causalmm.cli.terminal import tell
from causalmm.errors import FailureError, RequestError

SUFFIX = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def sole_writer(file: Path) -> Iterator[None]:
    """Hold a file, whether or not it is there yet, against other processes; one that dies lets go.

    Raises RequestError where another holds it or there is no folder for it, FailureError where no
    lock can be made.
    """
    file = file.resolve()  # one lock whatever the name
    if not file.parent.is_dir():
        raise RequestError(f"{file}: there is no folder {file.parent}")
    path = file.with_name(f".{file.name}{SUFFIX}")
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RequestError(
            f"another process is writing {file}: wait until it has ended, or write elsewhere"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise FailureError(f"{path} cannot be written ({error.strerror})") from error
        tell(f"{file}: its file system has no locks, so see to it that no other process writes it")
    try:
        yield
    finally:
        # Before it is let go: whoever takes a lock file that is no longer there does not count as
        # its holder, so that two never hold one. Windows removes none that is open; there the lock
        # removes it itself.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
