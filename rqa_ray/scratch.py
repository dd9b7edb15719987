"""Temporary folders for large files, such as checkpoints. A process that is killed cannot delete its folder.

Ray kills workers without a signal that they could catch, and a run that restarts often would fill the disk of a node.
So each process deletes what killed processes have left in the same place.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "rqa_ray-"
LOCK = "lock"  # the file that the owner of a folder has locked; the kernel unlocks the file when its owner ends


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yields an empty temporary folder, which is deleted after the block; deletes folders of killed processes too."""
    with suppress(OSError):  # such as a file system without locks
        _delete_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        files, new = Path(folder, "files"), Path(folder, "new")
        files.mkdir()
        with new.open("w") as owned:
            with suppress(OSError):
                fcntl.flock(owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                new.rename(Path(folder, LOCK))  # only now may others look whether it is locked
            yield str(files)


def _delete_left() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open() as left:  # the owner lives, or is another user
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
