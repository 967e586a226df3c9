"""Files that appear whole or not at all.

The bytes go to a temporary file in the same folder, which is synced and renamed
over the target, and the folder is synced. Whatever happens in between (a crash,
``kill -9``, a full disk), a reader finds the old file or the new one.
"""
import os
import re
import secrets
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

from mmengine.fileio import LocalBackend, register_backend

LEFT_S = 24 * 3600  # the age, in seconds, from which nobody is writing any more


def write_atomically(path, data: bytes) -> Path:
    """Write ``data`` to ``path``, whole or not at all.

    Args:
        path (str | Path): The file; its folder is made.
        data (bytes): All of its content.

    Returns:
        Path: ``path``.

    Raises:
        OSError: If it cannot be written, such as for a full disk. What was
            there before is still there.
    """
    with appearing_whole(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


@contextmanager
def appearing_whole(path) -> Iterator[Path]:
    """Let a file be written under another name, which it leaves when it is
    whole.

    Args:
        path (str | Path): The file; its folder is made.

    Yields:
        Path: Where to write it.

    Raises:
        OSError: As :func:`write_atomically`.
    """
    path = Path(path)
    owner = re.sub(r'\W', '_', socket.gethostname())
    # Machines of one name, and containers, count their processes alike.
    token = secrets.token_hex(4)
    temporary = path.with_name(
        f'.{path.name}.{owner}-{os.getpid()}-{token}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, owner)
        try:
            yield temporary
            with open(temporary, 'rb+') as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(
            error.errno, f'{path} cannot be written: {error.strerror}. '
            'What was there before is unchanged. Make room, or write to '
            'another folder') from error


def _sweep(folder: Path, owner: str) -> None:
    """Remove what killed writers of this machine left in ``folder``.

    A process that is not seen may yet be alive in another container, or on
    another machine of the same name; so only what is old is removed.
    """
    if os.name != 'posix':
        return
    for entry in os.scandir(folder):
        found = re.fullmatch(rf'\..+\.{owner}-(\d+)-[0-9a-f]+\.tmp', entry.name)
        if found and not _is_alive(int(found.group(1))):
            with suppress(FileNotFoundError):  # another writer sweeps, too
                if time.time() - entry.stat().st_mtime > LEFT_S:
                    os.unlink(entry.path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last through a power failure, where the file
    system can: on some, folders cannot be synced, and the file is there."""
    if os.name != 'posix':
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """mmengine's ``LocalBackend`` with atomic writes.

    For ``backend_args=dict(backend='atomic')``.
    """

    def put(self, obj: bytes, filepath) -> None:
        """Write bytes."""
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath, encoding: str = 'utf-8') -> None:
        """Write text."""
        write_atomically(filepath, obj.encode(encoding))
