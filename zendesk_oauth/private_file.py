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
    the disk before the old one goes. The temporary file always has the same name, so that the next write clears away
    what a killed one has left behind. For that the caller must hold a lock: one writer at a time.

    Raises:
        OSError: the disk is full, or the folder is not writable. The old file is untouched.
    """
    target = Path(path).resolve()  # where the path is a link, the file that it leads to is replaced
    temporary = target.with_name(f'{target.name}.tmp')
    try:
        temporary.unlink(missing_ok=True)
        # Created with mode 0600: there is no moment at which others could open it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def rehearse(path: str) -> None:
    """
    Find out whether the file at `path` could be written now, with some more in it; nothing is left behind.

    Raises:
        OSError: it could not.
    """
    target = Path(path).resolve()
    size = target.stat().st_size if target.exists() else 0
    with tempfile.TemporaryFile(dir=target.parent) as file:  # a file without a name: gone even after a crash
        file.write(bytes(size + 4096))


def _sync_folder(folder: Path) -> None:
    """Put the rename itself on the disk, where the system can (Windows and some network disks cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
