"""Files that hold secrets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from zendesk_oauth import private_file


def test_the_text_replaces_what_was_there(tmp_path):
    path = tmp_path / 'file'
    path.write_text('a longer text that was there before')
    private_file.write(str(path), 'Zoë 山田')
    assert path.read_text(encoding='utf-8') == 'Zoë 山田'


@pytest.mark.skipif(os.name != 'posix', reason='file modes are a matter of POSIX systems')
def test_the_file_is_private_from_the_moment_it_exists(tmp_path, monkeypatch):
    modes = []
    replace = private_file.Path.replace

    def record_mode_and_replace(self, target):
        assert self.parent == target.parent  # elsewhere may be another disk, and a rename no longer atomic
        modes.append(stat.S_IMODE(self.stat().st_mode))
        return replace(self, target)

    monkeypatch.setattr(private_file.Path, 'replace', record_mode_and_replace)
    before = os.umask(0)
    try:
        private_file.write(str(tmp_path / 'file'), 'secret')
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / 'file').stat().st_mode) == 0o600


def test_the_text_is_on_the_disk_before_the_old_file_goes(tmp_path, monkeypatch):
    order, sizes = [], []
    real_fsync, replace = os.fsync, private_file.Path.replace

    def fsync(descriptor):
        order.append('fsync')
        sizes.append(os.fstat(descriptor).st_size)
        real_fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(
        private_file.Path, 'replace', lambda self, target: (order.append('replace'), replace(self, target))
    )
    private_file.write(str(tmp_path / 'file'), 'text')
    assert order == ['fsync', 'replace'] + ['fsync'] * (os.name == 'posix')  # the last is the folder's
    assert sizes[0] == len('text')


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    path.write_text('old')

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        private_file.write(str(path), 'new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != 'posix', reason='links are a matter of POSIX systems')
def test_where_the_path_is_a_link_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'file').write_text('old')
    (tmp_path / 'link').symlink_to(tmp_path / 'data' / 'file')
    private_file.write(str(tmp_path / 'link'), 'new')
    private_file.rehearse(str(tmp_path / 'link'))
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'data' / 'file').read_text() == 'new'
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['data', 'file', 'link']


def test_the_cause_of_a_failed_write_is_told_and_not_that_of_the_tidying_up(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(PermissionError):
        private_file.write(str(tmp_path / 'file'), 'text')


@pytest.mark.skipif(os.name != 'posix', reason='links are a matter of POSIX systems')
def test_what_is_planted_in_the_place_of_the_temporary_file_is_not_written_to(tmp_path, monkeypatch):
    (tmp_path / 'elsewhere').write_text('theirs')
    (tmp_path / 'file.tmp').symlink_to(tmp_path / 'elsewhere')
    monkeypatch.setattr(private_file.Path, 'unlink', lambda self, missing_ok=False: None)  # planted after that
    with pytest.raises(FileExistsError):
        private_file.write(str(tmp_path / 'file'), 'secret')
    assert (tmp_path / 'elsewhere').read_text() == 'theirs'


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='open files are counted where Linux lists them')
def test_no_file_stays_open(tmp_path):
    def open_files():
        return len(list(Path('/proc/self/fd').iterdir()))

    before = open_files()
    for _ in range(10):
        private_file.write(str(tmp_path / 'file'), 'text')
        private_file.rehearse(str(tmp_path / 'file'))
    assert open_files() <= before
