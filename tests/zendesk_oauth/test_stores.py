"""JsonFileStore: users.json is complete and private, and no record is lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import LATER, NEW, OLD, OTHER, records, store

from zendesk_oauth import JsonFileStore, stores
from zendesk_oauth.errors import LockTimeout, StoreError
from zendesk_oauth.stores import HOUR, SPARE, SWEEP, write_private_file

WEEK = 7 * 24 * 3600

posix = pytest.mark.skipif(os.name != 'posix', reason='file modes and symbolic links need a POSIX system')


@pytest.fixture
def db(tmp_path, monkeypatch) -> JsonFileStore:
    """Return an empty store in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return JsonFileStore('users.json')


@pytest.fixture
def short_timeouts(monkeypatch) -> None:
    """Wait 50 ms for a lock and not at all for an editor."""
    monkeypatch.setattr(stores, 'REFRESH_TIMEOUT', 0.05)
    monkeypatch.setattr(stores, 'WRITE_TIMEOUT', 0.05)
    monkeypatch.setattr(stores, 'EDIT_TIMEOUT', 0)


def files(pattern: str = '*') -> list[str]:
    return sorted(path.name for path in Path().rglob(pattern) if path.name != 'users.json.d')


def locks() -> list[str]:
    """Return the names of the lock files, except the write lock."""
    return [name for name in files('*.lock') if name != 'write.lock']


def each_use(db: JsonFileStore) -> list:
    """Return one call of each method that reads or writes the file."""
    return [
        lambda: db.find('alice'),
        lambda: db.save('alice', NEW),
        lambda: db.remove('alice'),
        lambda: db.replace('alice', 'old-refresh', NEW),
        db.check_writable,
        lambda: db.refresh_lock('alice').__enter__(),
    ]


def each_write(db: JsonFileStore) -> list:
    return [
        lambda: db.save('alice', NEW),
        lambda: db.remove('alice'),
        lambda: db.replace('alice', 'old-refresh', NEW),
        lambda: db.replace('alice', 'old-refresh', None),
        db.check_writable,
    ]


# --- Records --- #


def test_the_file_is_sorted_and_indented_json(db):
    db.save('bob', OTHER)
    db.save('alice', {'refresh_token': 'r', 'access_token': 'a'})
    assert Path('users.json').read_text() == (
        '{\n'
        '  "alice": {\n    "access_token": "a",\n    "refresh_token": "r"\n  },\n'
        '  "bob": {\n    "access_token": "other-access",\n    "refresh_token": "other-refresh"\n  }\n'
        '}\n'
    )


# --- Reading --- #


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """Collect the texts that are parsed as JSON."""
    texts, loads = [], json.loads
    monkeypatch.setattr('zendesk_oauth.stores.json.loads', lambda text: texts.append(text) or loads(text))
    return texts


def freeze_metadata(monkeypatch) -> None:
    """Hide changes of users.json, as if all of them fell within one tick of the file system's clock."""
    real_stat, frozen = Path.stat, Path('users.json').stat()
    monkeypatch.setattr(
        Path, 'stat', lambda path, **kwargs: frozen if path.name == 'users.json' else real_stat(path, **kwargs)
    )


def test_reading_creates_no_file(db):
    assert db.find('alice') is None
    assert list(Path().iterdir()) == []


def test_an_unchanged_file_is_read_once(db, parsed):
    store(alice=OLD)
    for _ in range(100):
        assert db.find('alice') == OLD
        assert db.find('bob') is None
    assert len(parsed) == 1


def test_an_edited_file_is_read_again(db):
    for number in range(100, 200):
        record = {**OLD, 'access_token': str(number)}
        Path('new.json').write_text(json.dumps({'alice': record}))
        Path('new.json').rename('users.json')
        assert db.find('alice') == record
    Path('users.json').unlink()
    assert db.find('alice') is None


def test_an_older_read_of_another_thread_does_not_replace_the_record_under_the_lock(tmp_path, monkeypatch):
    class Store(JsonFileStore):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == '_last_read':  # another thread, which has read the file earlier, sets it right afterward
                super().__setattr__(name, ((), {'alice': OLD}))

    monkeypatch.chdir(tmp_path)
    store(alice=NEW)
    with Store('users.json').refresh_lock('alice') as stored:
        assert stored == NEW


def test_the_refresh_lock_bypasses_the_cache(db, monkeypatch):
    store(alice=OLD)
    assert db.find('alice') == OLD
    freeze_metadata(monkeypatch)
    store(alice=NEW)
    assert db.find('alice') == OLD
    with db.refresh_lock('alice') as stored:
        assert stored == NEW
    assert db.find('alice') == NEW


def test_a_writer_bypasses_the_cache(db, monkeypatch):
    store(alice=OLD)
    assert db.find('alice') == OLD
    freeze_metadata(monkeypatch)
    store(alice=NEW, bob=OTHER)
    assert db.replace('alice', 'old-refresh', OTHER) == NEW
    assert db.remove('bob') == OTHER


def test_the_path_can_be_a_function(tmp_path):
    path = tmp_path / 'one.json'
    db = JsonFileStore(lambda: str(path))
    db.save('alice', OLD)
    path = tmp_path / 'other.json'
    assert db.find('alice') is None
    db.save('alice', NEW)
    path = tmp_path / 'one.json'
    assert db.find('alice') == OLD
    assert str(db) == str(path)


def test_a_byte_order_mark_is_accepted(db):
    Path('users.json').write_text(json.dumps({'alice': OLD}), encoding='utf-8-sig')
    db.save('bob', NEW)
    assert (db.find('alice'), db.find('bob')) == (OLD, NEW)


def test_each_method_raises_if_the_file_is_unreadable(db, monkeypatch):
    store(alice=OLD)

    def refuse(self, **kwargs):
        raise PermissionError(13, 'Permission denied')

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'read_text', refuse)
        for use in each_use(db):
            with pytest.raises(StoreError, match=r'users\.json cannot be read: Permission denied'):
                use()
    assert files('*.json*') == ['users.json']
    assert db.find('alice') == OLD


def test_find_raises_if_the_folder_is_a_file(db):
    Path('file').touch()
    with pytest.raises(StoreError, match='cannot be read'):
        JsonFileStore('file/users.json').find('alice')


# --- A file that is not a JSON object --- #

NOT_A_JSON_OBJECT = {
    'empty': b'',
    'truncated': b'{"alice": {',
    'not UTF-8': b'\xff\xfe\x00',
    'a list': b'[]',
    'null': b'null',
    'nested too deeply': b'[' * 200_000,
    'a number that is too long': b'{"alice": 1' + b'1' * 5000 + b'}',
}


@pytest.mark.parametrize('content', NOT_A_JSON_OBJECT.values(), ids=NOT_A_JSON_OBJECT)
@pytest.mark.parametrize('number', range(6))
def test_a_file_that_is_not_a_json_object_is_renamed_once(db, short_timeouts, package_log, content, number):
    Path('users.json').write_bytes(content)
    Path('users.json').chmod(0o644)
    each_use(db)[number]()
    [renamed] = files('users.json.unreadable-*')
    assert Path(renamed).read_bytes() == content
    assert stat.S_IMODE(Path(renamed).stat().st_mode) == 0o600 or os.name != 'posix'
    [line] = package_log
    assert line.levelname == 'ERROR'
    assert f'users.json is not a JSON object: renamed to {renamed}' in line.getMessage()
    # The store then works as in a new folder.
    db.save('bob', OLD)
    assert db.find('bob') == OLD
    assert files('users.json.unreadable-*') == [renamed]


def test_concurrent_readers_rename_a_broken_file_once(db, short_timeouts, monkeypatch):
    monkeypatch.setattr(stores, 'WRITE_TIMEOUT', 5)
    Path('users.json').write_text('broken')
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: barrier.wait() is db.find('alice'), range(8)))
    assert found == [False] * 8
    assert len(files('users.json.unreadable-*')) == 1


def test_a_file_is_renamed_only_under_the_write_lock(db, short_timeouts):
    """Hold the lock: otherwise, a writer's new file could be renamed."""
    db.check_writable()
    Path('users.json').write_text('broken')
    with FileLock('users.json.d/locks/write.lock'), pytest.raises(LockTimeout):
        db.find('alice')
    assert files('users.json*') == ['users.json']


def test_each_renamed_file_has_its_own_name(db, short_timeouts):
    for number in range(3):
        Path('users.json').write_text(f'broken {number}')
        assert db.find('alice') is None
    renamed = files('users.json.unreadable-*')
    assert [Path(name).read_text() for name in renamed] == ['broken 0', 'broken 1', 'broken 2']


@pytest.mark.parametrize(
    ('use', 'outcome'), [(lambda db: db.find('alice'), OLD), (lambda db: db.replace('alice', 'old-refresh', NEW), NEW)]
)
def test_the_store_waits_for_an_editor_to_finish_writing(db, monkeypatch, use, outcome):
    """Simulate an editor that writes in place: the file is empty, then incomplete, then complete."""
    content = json.dumps({'alice': OLD, 'bob': OTHER})
    file = Path('users.json').open('w')  # noqa: SIM115 - closed while the store waits
    steps = [lambda: (file.write(content[:20]), file.flush()), lambda: (file.write(content[20:]), file.close())]
    monkeypatch.setattr(time, 'sleep', lambda seconds: steps.pop(0)())
    assert use(db) == outcome
    assert db.find('bob') == OTHER
    assert files('users.json.unreadable-*') == []


def test_an_editor_has_one_second_to_finish(db, monkeypatch):
    now = time.monotonic()
    began = now
    Path('users.json').write_text('{')

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(time, 'sleep', sleep)
    assert db.find('alice') is None
    assert 1 < now - began < 1.1


def test_each_method_raises_if_a_broken_file_cannot_be_renamed(db, short_timeouts, monkeypatch):
    Path('users.json').write_text('broken')

    def refuse(self, target):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'rename', refuse)
    for use in each_use(db):
        with pytest.raises(StoreError, match='is not JSON, and cannot be renamed: Permission denied'):
            use()
    assert Path('users.json').read_text() == 'broken'


# --- Writing --- #


def test_check_writable_rewrites_the_file_unchanged(db):
    store(alice=OLD)
    before = Path('users.json').stat()
    db.check_writable()
    assert records() == {'alice': OLD}
    assert Path('users.json').stat().st_ino != before.st_ino
    assert files('users*') == ['users.json']


@pytest.mark.parametrize('step', ['open', 'fsync', 'replace'])
@pytest.mark.parametrize('number', range(5))
def test_a_failed_write_raises_and_keeps_the_old_file(db, monkeypatch, step, number):
    """Cover a full disk, a read-only folder and a file that is a mount point and cannot be replaced."""
    store(alice=OLD)

    def fail(*args, **kwargs):
        raise OSError(errno.EBUSY, 'Device or resource busy')

    with monkeypatch.context() as patch:
        if step == 'replace':
            patch.setattr(Path, 'replace', fail)
        else:
            real = os.open
            patch.setattr(
                os, step, lambda path, *args: fail() if str(path)[-4:] in ('.tmp', str(path)) else real(path, *args)
            )
        with pytest.raises(
            StoreError, match=r'users\.json cannot be written: Device or resource busy\. The file may be a mount'
        ):
            each_write(db)[number]()
    assert records() == {'alice': OLD}
    assert files('users*') == ['users.json']


def test_nothing_is_written_if_nothing_changes(db, full_disk):
    store(alice=OLD)
    db.save('alice', dict(OLD))
    db.remove('bob')
    db.replace('alice', 'another', NEW)
    db.replace('alice', 'old-refresh', dict(OLD))


def test_each_write_raises_if_the_folder_is_missing(db):
    for use in each_write(JsonFileStore('no/such/folder/users.json')):
        with pytest.raises(StoreError, match=r'users\.json\.d/locks cannot be created'):
            use()
    with pytest.raises(StoreError):
        JsonFileStore('no/such/folder/users.json').consume_once('key', LATER)


def test_check_writable_raises_if_the_lock_file_is_a_folder(db):
    Path('users.json.d/locks/write.lock').mkdir(parents=True)
    with pytest.raises(StoreError, match=r'a lock in .*locks cannot be acquired'):
        db.check_writable()


def test_a_write_waits_a_limited_time_for_another_write(db, monkeypatch):
    db.check_writable()
    lock = FileLock('users.json.d/locks/write.lock', thread_local=False)
    lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(db.remove, 'alice')
        threading.Timer(0.05, lock.release).start()
        writing.result(10)
    monkeypatch.setattr(stores, 'WRITE_TIMEOUT', 0.05)
    with lock, pytest.raises(LockTimeout, match=r'not released within 0\.05 s\. Try again later'):
        db.remove('alice')


@posix
def test_all_files_are_private_with_any_umask(db):
    Path('users.json').write_text('{}')
    Path('users.json').chmod(0o644)
    before = os.umask(0)
    try:
        db.save('alice', OLD)
        db.consume_once('key', LATER)
        with db.refresh_lock('alice'):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path().rglob('*')}
    finally:
        os.umask(before)
    folders = [modes.pop(name) for name in list(modes) if name in ('users.json.d', 'locks') or name.startswith('used-')]
    assert folders == [0o700] * 3
    assert set(modes.values()) == {0o600}
    assert len(modes) == 4  # users.json, two locks, a marker


# --- write_private_file --- #


def test_write_private_file_replaces_the_text(db):
    Path('file').write_text('a longer text that was there before')
    write_private_file('file', 'Zoë 山田')
    assert Path('file').read_text(encoding='utf-8') == 'Zoë 山田'
    assert files() == ['file']


@posix
def test_the_file_is_created_with_private_permissions(db, monkeypatch):
    modes, real_open = [], os.open

    def record_mode(path, *args):
        descriptor = real_open(path, *args)
        if Path(path).is_file():
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, 'open', record_mode)
    before = os.umask(0)
    try:
        write_private_file('file', 'secret')
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE(Path('file').stat().st_mode) == 0o600


def test_the_text_is_synced_before_the_old_file_is_replaced(db, monkeypatch):
    steps, fsync, replace = [], os.fsync, Path.replace

    def record_fsync(descriptor):
        steps.append(('fsync', os.fstat(descriptor).st_size if len(steps) == 0 else None))
        fsync(descriptor)

    def record_replace(path, target):
        assert path.parent == target.parent  # a rename is atomic only within a folder
        steps.append(('replace', None))
        replace(path, target)

    monkeypatch.setattr(os, 'fsync', record_fsync)
    monkeypatch.setattr(Path, 'replace', record_replace)
    write_private_file('file', 'text')
    assert steps[:2] == [('fsync', 4), ('replace', None)]
    assert steps[2:] == [('fsync', None)] * (os.name == 'posix')  # the folder


def test_a_write_succeeds_if_the_folder_cannot_be_synced(db, monkeypatch):
    def refuse(path, flags, *args, real_open=os.open):
        if flags == os.O_RDONLY:
            raise PermissionError(13, 'Permission denied')
        return real_open(path, flags, *args)

    monkeypatch.setattr(os, 'open', refuse)
    write_private_file('file', 'text')
    assert Path('file').read_text() == 'text'


def test_an_interrupted_write_keeps_only_the_old_file(db, monkeypatch):
    Path('file').write_text('old')

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_private_file('file', 'new')
    assert Path('file').read_text() == 'old'
    assert files() == ['file']


def test_a_write_deletes_the_temporary_file_of_a_killed_process(db):
    Path('file.tmp').write_text('half of')
    write_private_file('file', 'text')
    assert files() == ['file']


@posix
def test_writing_to_a_symbolic_link_replaces_the_link(db):
    Path('target').write_text('theirs')
    Path('target').chmod(0o644)
    Path('link').symlink_to('target')
    write_private_file('link', 'new')
    assert (Path('link').read_text(), Path('link').is_symlink()) == ('new', False)
    assert (Path('target').read_text(), stat.S_IMODE(Path('target').stat().st_mode)) == ('theirs', 0o644)


@pytest.fixture
def file_in_use(monkeypatch):
    """A function that makes an operation raise PermissionError the first `times` times, as on Windows."""

    def file_in_use(operation: str, times: int) -> list[float]:
        real, waits = getattr(Path, operation), []

        def fail_at_first(*args, **kwargs):
            if len(waits) < times:
                raise PermissionError(13, 'Permission denied')
            return real(*args, **kwargs)

        monkeypatch.setattr(Path, operation, fail_at_first)
        monkeypatch.setattr(time, 'sleep', waits.append)
        return waits

    return file_in_use


@pytest.mark.parametrize('operation', ['replace', 'read_text'])
def test_reads_and_writes_are_retried_while_the_file_is_in_use(db, monkeypatch, file_in_use, operation):
    store(alice=OLD)
    monkeypatch.setattr(stores, 'IN_USE_TIMEOUT', 3)
    waits = file_in_use(operation, times=5)
    assert db.replace('alice', 'old-refresh', NEW) == NEW
    assert len(waits) == 5
    assert records() == {'alice': NEW}
    assert files('users*') == ['users.json']


@pytest.mark.parametrize('operation', ['replace', 'read_text'])
def test_an_operation_fails_if_the_file_stays_in_use(db, monkeypatch, file_in_use, operation):
    store(alice=OLD)
    now = time.monotonic()
    monkeypatch.setattr(stores, 'IN_USE_TIMEOUT', 3)
    waits = file_in_use(operation, times=1000)
    monkeypatch.setattr(time, 'monotonic', lambda: now + sum(waits))
    with pytest.raises(StoreError, match='Permission denied'):
        db.replace('alice', 'old-refresh', NEW)
    assert sum(waits) == pytest.approx(3, abs=0.1)
    assert files('users*') == ['users.json']


@posix
def test_only_windows_retries(db, file_in_use):
    store(alice=OLD)
    waits = file_in_use('replace', times=1)
    with pytest.raises(StoreError, match='Permission denied'):
        db.remove('alice')
    assert waits == []


# --- Files that cannot be replaced --- #


def test_check_setup_changes_nothing(db):
    db.check_setup()
    assert files() == []
    store(alice=OLD)
    before = Path('users.json').stat()
    db.check_setup()
    assert Path('users.json').stat() == before
    assert files() == ['users.json']


@posix
@pytest.mark.parametrize('target', ['data.json', 'no/such/file'])
def test_a_symbolic_link_is_refused(db, target):
    Path('data.json').write_text(json.dumps({'alice': OLD}))
    Path('data.json').chmod(0o644)
    Path('users.json').symlink_to(target)
    for use in (*each_write(db), db.check_setup):
        with pytest.raises(StoreError, match=r'/users\.json is a symbolic link\. Remove it, or replace it'):
            use()
    assert Path('users.json').is_symlink()
    assert json.loads(Path('data.json').read_text()) == {'alice': OLD}
    assert stat.S_IMODE(Path('data.json').stat().st_mode) == 0o644


@posix
def test_a_broken_file_behind_a_symbolic_link_is_not_touched(db, short_timeouts):
    Path('data.json').write_text('broken')
    Path('data.json').chmod(0o644)
    Path('users.json').symlink_to('data.json')
    for use in each_use(db):
        with pytest.raises(StoreError, match='is a symbolic link'):
            use()
    assert files('*.json*') == ['data.json', 'users.json']
    assert stat.S_IMODE(Path('data.json').stat().st_mode) == 0o644


def raise_error(number: int):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ('operation', 'number', 'message'),
    [
        (
            'os.link',
            errno.EXDEV,
            'is a mount, .* Mount its folder instead, and use that folder as the working',
        ),
        (
            'os.mkdir',
            errno.EACCES,
            'cannot be read or replaced: Permission denied. Check the disk, and the permissions',
        ),
        ('os.mkdir', errno.EROFS, 'cannot be read or replaced: Read-only file system. Check the disk'),
        ('os.mkdir', errno.ENOSPC, 'cannot be read or replaced: No space left on device. Check the disk'),
        ('fcntl.flock', errno.ENOLCK, 'cannot be read or replaced: No locks available. The file system has no locks'),
        (
            'fcntl.flock',
            errno.EOPNOTSUPP,
            'cannot be read or replaced: Operation not supported. The file system has no locks',
        ),
        (
            'pathlib.Path.open',
            errno.EACCES,
            'cannot be read or replaced: Permission denied. Check the disk, and the permissions',
        ),
    ],
)
@posix
def test_check_setup_names_the_path_and_the_remedy(db, monkeypatch, operation, number, message):
    store(alice=OLD)
    with monkeypatch.context() as patch:
        patch.setattr(operation, raise_error(number))
        with pytest.raises(StoreError, match=rf'^/.*/users\.json {message}'):
            db.check_setup()
    assert files() == ['users.json']


@posix
@pytest.mark.parametrize('number', [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_check_setup_accepts_a_file_system_without_hard_links(db, monkeypatch, number):
    store(alice=OLD)
    monkeypatch.setattr(os, 'link', raise_error(number))
    db.check_setup()


def test_check_readable_creates_no_file(db):
    db.check_readable()
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize('content', ['', '[]', '{"alice": ', b'\xff'.decode('latin-1')])
def test_check_readable_does_not_rename_the_file(db, content):
    store(alice=OLD)
    db.check_readable()
    Path('users.json').write_text(content, encoding='latin-1')
    with pytest.raises(StoreError, match=r'users\.json is not a JSON object\. Repair it'):
        db.check_readable()
    assert [path.name for path in Path().iterdir()] == ['users.json']


def test_check_readable_names_the_cause(db, monkeypatch):
    monkeypatch.setattr(Path, 'stat', raise_error(errno.EACCES))
    with pytest.raises(StoreError, match=r'users\.json cannot be read: Permission denied'):
        db.check_readable()


def test_check_setup_refuses_a_missing_folder():
    with pytest.raises(StoreError, match=r'^/.*/no/users\.json cannot be read or replaced: No such file or directory'):
        JsonFileStore('no/users.json').check_setup()


@posix
@pytest.mark.parametrize('create', [Path.mkdir, os.mkfifo])
def test_check_setup_refuses_anything_but_a_file(db, create):
    """Docker creates a folder if the file to mount does not exist."""
    create(Path('users.json'))
    with pytest.raises(StoreError, match=r'/users\.json is not a file\. Delete it'):
        db.check_setup()


def test_check_setup_tests_the_folder_of_the_locks(db, monkeypatch):
    """It belongs to root if root has run the app once."""
    with db.refresh_lock('alice'):
        pass
    db.check_setup()
    real = os.open

    def refuse(path, *args, **kwargs):
        if Path(path).parent == Path('users.json.d').absolute() or Path(path) == Path('users.json.d').absolute():
            raise PermissionError(13, 'Permission denied')
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(StoreError, match=r'/users\.json\.d cannot be written: Permission denied'):
        db.check_setup()


@posix
@pytest.mark.parametrize('name', ['users.json', 'users.json.d'])
@pytest.mark.parametrize(
    ('owner', 'account', 'folder_owner', 'trusted'),
    [(666, 1234, 1234, False), (0, 1234, 1234, True), (1234, 1234, 0, True), (4321, 0, 4321, True)],
)
def test_a_file_of_another_account_is_refused(db, monkeypatch, name, owner, account, folder_owner, trusted):
    """In a shared folder, another account can create the file, or a folder with links to other files."""
    db.save('alice', OLD)
    owners, real = {name: owner, Path.cwd().name: folder_owner, '': folder_owner}, Path.stat

    def of_owner(path, **kwargs):
        status = real(path, **kwargs)
        return os.stat_result([*status[:4], owners.get(path.name, account), *status[5:]])

    monkeypatch.setattr(os, 'geteuid', lambda: account)
    monkeypatch.setattr(Path, 'stat', of_owner)
    for use in (db.check_setup, db.check_writable):
        with contextlib.nullcontext() if trusted else pytest.raises(StoreError, match=f'{name} belongs to another'):
            use()
    assert db.find('alice') == OLD


@posix
@pytest.mark.parametrize('target', ['elsewhere', 'no/such/folder'])
def test_a_link_in_place_of_the_folder_of_the_locks_is_refused(db, target):
    Path('elsewhere/used-0').mkdir(parents=True)
    Path('elsewhere/used-0/file').touch()
    Path('users.json.d').symlink_to(target)
    for use in (db.check_setup, db.check_writable, lambda: db.consume_once('key', LATER)):
        with pytest.raises(StoreError):
            use()
    assert Path('elsewhere/used-0/file').exists()


def test_check_setup_refuses_a_file_in_place_of_the_lock_folder(db):
    Path('users.json.d').touch()
    with pytest.raises(StoreError, match=r'/users\.json\.d cannot be written: Not a directory'):
        db.check_setup()


@posix
def test_a_planted_temporary_file_is_not_overwritten(db, monkeypatch):
    Path('elsewhere').write_text('theirs')
    Path('file.tmp').symlink_to('elsewhere')
    monkeypatch.setattr(Path, 'unlink', lambda self, missing_ok=False: None)  # as if planted after this call
    with pytest.raises(FileExistsError):
        write_private_file('file', 'secret')
    assert Path('elsewhere').read_text() == 'theirs'


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs /proc/self/fd to count open files')
def test_no_file_is_left_open(db):
    def open_files() -> int:
        return len(list(Path('/proc/self/fd').iterdir()))

    before = open_files()
    for number in range(5):
        db.save('alice', {**OLD, 'access_token': str(number)})
        db.consume_once(str(number), LATER)
        with db.refresh_lock('alice'):
            pass
    assert open_files() <= before


# --- The refresh lock --- #


@pytest.mark.usefixtures('short_timeouts')
def test_a_failed_refresh_releases_the_lock(db, monkeypatch):
    kept = []  # a lock that is garbage-collected releases itself
    monkeypatch.setattr(stores, 'FileLock', lambda *args, **kwargs: kept.append(FileLock(*args, **kwargs)) or kept[-1])
    with pytest.raises(ZeroDivisionError), db.refresh_lock('alice'):
        1 / 0  # noqa: B018
    with db.refresh_lock('alice'):
        pass
    assert len(kept) == 2


@pytest.mark.parametrize('user_id', ['', 'a/b', '../x', '..', 'x' * 300, 'Zoë 山田', 'a\x00b', 'write'])
def test_any_user_id_can_be_locked(db, user_id):
    with db.refresh_lock(user_id):
        db.save(user_id, OLD)
        assert len(locks()) == 1
    assert db.find(user_id) == OLD
    assert sorted(path.name for path in Path().iterdir()) == ['users.json', 'users.json.d']


def test_a_deleted_lock_file_is_created_again(db):
    with db.refresh_lock('alice'):
        Path('users.json.d/locks', *locks()).unlink()
    with db.refresh_lock('alice'):
        pass


# --- Keys that can be consumed once --- #


def test_a_key_is_marked_as_used_atomically(db, monkeypatch):
    assert db.consume_once('key', LATER)
    monkeypatch.setattr(Path, 'exists', lambda self: False)  # a separate check would be a race condition
    assert not db.consume_once('key', LATER)


def test_consume_once_raises_if_a_marker_cannot_be_written(db, monkeypatch):
    def refuse(self, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'touch', refuse)
    with pytest.raises(StoreError, match=r'users\.json\.d/used-1111111 cannot be written: No space left on device'):
        db.consume_once('key', LATER)


def test_consume_once_raises_if_the_marker_folder_is_a_file(db):
    Path('users.json.d').touch()
    with pytest.raises(StoreError, match=r'users\.json\.d'):
        db.consume_once('key', LATER)


# --- The sweep --- #


def markers() -> list[str]:
    return sorted(path.name for path in Path('users.json.d').glob('used-*/*'))


def test_expired_markers_are_deleted_at_the_next_callback(db, clock):
    clock.now = 100 * HOUR
    for name, seconds in {'old': 0, 'young': HOUR, 'new': 2 * HOUR}.items():
        assert db.consume_once(name, int(clock.now) + seconds)
    clock.advance(HOUR + 1)
    assert db.consume_once('other', int(clock.now) + HOUR)
    assert markers() == ['new', 'other', 'young']
    assert not db.consume_once('young', 101 * HOUR)


def test_a_grant_deletes_unused_lock_files(db):
    for number in range(5):
        with db.refresh_lock(f'user-{number}'):
            pass
    assert len(locks()) == 5
    with db.refresh_lock('alice'):
        [held] = set(locks()) - {name for name in locks() if not is_held(name)}
        db.save('bob', OLD)
        assert locks() == [held]
    db.save('carol', OLD)
    assert locks() == []


def is_held(name: str) -> bool:
    lock = FileLock(f'users.json.d/locks/{name}', timeout=0, thread_local=False)
    try:
        lock.acquire()
    except TimeoutError:
        return True
    lock.release()
    return False


def test_repeated_sweeps_delete_all_expired_files_in_small_batches(db):
    for number in range(3 * SWEEP):
        db.consume_once(f'fresh{number}', LATER)
    old = Path('users.json.d/used-5')
    old.mkdir()
    for number in range(2 * SWEEP + 10):
        (old / str(number)).touch()
    for left in (SWEEP + 10, 10, 0):
        db.consume_once(f'new{left}', LATER)
        assert len(list(old.glob('*'))) == left
    assert not old.exists()
    assert len(markers()) == 3 * SWEEP + 3


def test_a_callback_reads_a_limited_number_of_markers(db, monkeypatch):
    old = Path('users.json.d/used-5')
    old.mkdir(parents=True)
    for number in range(3 * SWEEP):
        (old / str(number)).touch()
    seen, real, listdir = [], os.scandir, os.listdir

    def refuse_to_list(folder):
        assert 'used-' not in str(folder)
        return listdir(folder)

    class Scan:
        def __init__(self, folder):
            self.entries = real(folder)

        def __iter__(self):
            return (seen.append(entry.name) or entry for entry in self.entries)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.entries.close()

    monkeypatch.setattr(os, 'scandir', Scan)
    monkeypatch.setattr(os, 'listdir', refuse_to_list)
    assert db.consume_once('key', LATER)
    assert len(seen) <= SWEEP + 10  # and the few entries of users.json.d


def test_a_grant_deletes_a_limited_number_of_lock_files(db):
    db.save('alice', OLD)
    for number in range(2 * SWEEP):
        Path('users.json.d/locks', f'{number}.lock').touch()
    db.save('alice', NEW)
    assert len(locks()) == pytest.approx(SWEEP, abs=1)  # the write lock may be included


@pytest.mark.parametrize('name', ['backup.json', 'used-mine/file', 'used-/file'])
def test_the_sweep_keeps_files_of_other_programs(db, name):
    db.save('alice', OLD)
    path = Path('users.json.d', name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (0, 0))
    db.consume_once('key', LATER)
    db.save('alice', NEW)
    assert path.exists()


def test_a_failed_sweep_is_ignored(db, monkeypatch):
    Path('users.json.d/used-5').mkdir(parents=True)
    Path('users.json.d/used-5/old').touch()

    def refuse(self, **kwargs):
        raise PermissionError(13, 'Permission denied')

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', lambda self, missing_ok=False: None if missing_ok else refuse(self))
        assert db.consume_once('key', LATER)
        db.save('alice', OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', refuse)
        db.save('alice', NEW)
    assert records() == {'alice': NEW}


def test_check_writable_reserves_space_for_a_larger_file(db, monkeypatch):
    db.save('alice', OLD)
    sizes = []
    before = Path('users.json').read_bytes()
    monkeypatch.setattr('zendesk_oauth.stores.write_private_file', lambda path, text, spare: sizes.append(spare))
    db.check_writable()
    db.save('alice', NEW)
    assert sizes == [SPARE, 0]
    assert Path('users.json').read_bytes() == before


def test_the_spare_space_is_enough_for_the_longest_tokens():
    longest = {'access_token': '"' * 4096, 'refresh_token': '\\' * 4096, 'refresh_token_expires_at': LATER}
    assert len(json.dumps(longest, indent=2)) < SPARE


def test_spare_bytes_are_written_and_then_removed(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, 'fsync', lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_private_file(str(tmp_path / 'file'), 'Zoë', spare=4096)
    assert (tmp_path / 'file').read_text(encoding='utf-8') == 'Zoë'
    assert sizes[0] == len('Zoë'.encode())


def test_the_refresh_lock_has_one_holder_during_sweeps(db):
    holders, most, done = [], [], threading.Event()

    def refresh(number: int) -> None:
        for _ in range(15):
            with JsonFileStore('users.json').refresh_lock('alice'):
                holders.append(number)
                most.append(len(holders))
                time.sleep(0)  # lets other threads run
                most.append(len(holders))
                holders.remove(number)

    def sweep(number: int) -> None:
        while not done.is_set():
            JsonFileStore('users.json').save('bob', {**OTHER, 'access_token': str(number)})

    with ThreadPoolExecutor(12) as pool:
        sweeping = [pool.submit(sweep, number) for number in range(4)]
        refreshing = [pool.submit(refresh, number) for number in range(8)]
        for future in refreshing:
            future.result(60)
        done.set()
        for future in sweeping:
            future.result(60)
    assert set(most) == {1}
    assert len(most) == 8 * 15 * 2


def test_the_messages_of_locks_do_not_contain_a_hash_of_the_user_id(db, short_timeouts):
    with db.refresh_lock('alice'), pytest.raises(LockTimeout) as raised, db.refresh_lock('alice'):
        pass
    assert hashlib.sha256(b'alice').hexdigest()[:8] not in str(raised.value)
    assert raised.value.__suppress_context__


def test_an_error_after_a_broken_file_does_not_contain_its_content(db, short_timeouts, monkeypatch):
    Path('users.json').write_text('{"alice": {"access_token": "canary"')

    def no_permission(*args):
        raise OSError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'rename', no_permission)
    with pytest.raises(StoreError) as raised:
        db.find('alice')
    error, chain = raised.value, []
    while error:
        chain.append(error)
        error = error.__cause__ or error.__context__
    assert len(chain) > 1
    assert '_NotJson' not in str(chain)  # its frames contain the text
    assert not any('canary' in str(vars(error)) + str(error) + getattr(error, 'doc', '') for error in chain)
