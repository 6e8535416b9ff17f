"""Files that hold secrets: nobody else may read them, and a crash never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write(path: str, text: str) -> None:
    """
    Replace the file at `path` with `text` (UTF-8), whole or not at all, readable by its owner only.

    A reader sees the old file or the new one, because a rename within a folder is atomic; `fsync` puts the new one on
    the disk before the old one goes.

    Raises:
        OSError: the disk is full, or the folder is not writable. The old file is untouched.
    """
    target = Path(path)
    # mkstemp creates the file with mode 0600: there is no moment at which others could open it.
    descriptor, temporary = tempfile.mkstemp(prefix=f'{target.name}.', suffix='.tmp', dir=target.parent)
    try:
        with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Put the rename itself on the disk, where the system can (Windows can not)."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
