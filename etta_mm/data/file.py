"""Files and folders that a run needs, checked before it starts."""
import difflib
import os
import os.path as osp
import tempfile
from pathlib import Path
from typing import Optional

#: What mmengine reads as a config.
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def check_file(path: str, what: str, remedy: str) -> None:
    """Raise ``FileNotFoundError`` unless ``path`` exists.

    A path on another machine (``http://...``, ``torchvision://...``) passes.

    Args:
        path (str): A file, or the folder of a sharded checkpoint.
        what (str): What the path stands for; begins the message.
        remedy (str): What the user may do; ends the message.
    """
    if '://' in str(path) or osp.exists(osp.expanduser(path)):
        return
    folder = osp.dirname(osp.abspath(path))
    while not osp.isdir(folder):
        folder = osp.dirname(folder)
    names = sorted(os.listdir(folder))
    near = difflib.get_close_matches(osp.basename(path), names) or names[:3]
    raise FileNotFoundError(
        f'{what} {path!r} does not exist. {folder} exists and holds '
        f'{", ".join(near) or "nothing"}'
        f'{", ..." if len(names) > len(near) else ""}. {remedy}')


def check_config(path: str, order: Optional[str] = None) -> None:
    """Raise an error unless ``path`` is a file that may be a config.

    Args:
        path (str): What a tool was given.
        order (str, optional): The arguments of the tool in their order, where
            a config is easily given in the place of another.

    Raises:
        FileNotFoundError: If it does not exist; the message names configs of
            like names.
        ValueError: If it is a folder, or a file of another kind.
    """
    remedy = 'Give one that exists' + (
        f'; the order of the arguments is {order}.' if order else
        ', seen from the current folder.')
    full = osp.expanduser(path)
    if osp.isdir(full):
        raise ValueError(f'The config {path!r} is a folder. {remedy}')
    if not osp.exists(full):
        raise FileNotFoundError(
            f'The config {path!r} does not exist. {_like(Path(full))} {remedy}')
    if not path.endswith(CONFIG_SUFFIXES):
        raise ValueError(f'{path!r} is no config, of which the name ends with '
                         f'one of {", ".join(CONFIG_SUFFIXES)}. {remedy}')


def _like(path: Path) -> str:
    """What to say of the configs whose names are like that of ``path``."""
    found = {*Path('configs').rglob('*.py'), *path.parent.glob('*.py')}
    stems = {file.stem: str(file) for file in sorted(found)}
    near = difflib.get_close_matches(path.stem, stems)
    if near:
        return f'Near it: {", ".join(stems[stem] for stem in near)}.'
    return f'No name in {str(path.parent)!r} or below configs/ is like it.'


def check_folder_writable(folder: str, what: str) -> None:
    """Make ``folder`` and raise ``ValueError`` unless files can be written.

    A file is really written: permissions say nothing to root, and nothing of a
    full or read-only disk.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise ValueError(
            f'{what} {folder!r} cannot be written: {error.strerror}. It must '
            'be a folder in which this user may create files: give another '
            'one.') from error
