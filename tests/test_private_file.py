"""Files that hold secrets."""

from __future__ import annotations

import os
import stat

import pytest

import private_file


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
    order = []
    fsync, replace = os.fsync, private_file.Path.replace
    monkeypatch.setattr(os, 'fsync', lambda descriptor: (order.append('fsync'), fsync(descriptor)))
    monkeypatch.setattr(
        private_file.Path, 'replace', lambda self, target: (order.append('replace'), replace(self, target))
    )
    private_file.write(str(tmp_path / 'file'), 'text')
    assert order == ['fsync', 'replace'] + ['fsync'] * (os.name == 'posix')  # the last is the folder's


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
