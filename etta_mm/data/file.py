"""Files and folders that a run needs, checked before it starts."""
import difflib
import os
import os.path as osp
import tempfile

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


def check_config(path: str, order: str) -> None:
    """Raise an error unless ``path`` is a file that may be a config.

    Args:
        path (str): What a tool was given.
        order (str): The arguments of the tool in their order: a config is
            easily given in the place of another.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is a folder, or a file of another kind.
    """
    remedy = f'Give one that exists; the order of the arguments is {order}.'
    check_file(path, 'The config', remedy)
    if osp.isdir(path):
        raise ValueError(f'The config {path!r} is a folder. {remedy}')
    if not path.endswith(CONFIG_SUFFIXES):
        raise ValueError(f'{path!r} is no config, of which the name ends with '
                         f'one of {", ".join(CONFIG_SUFFIXES)}. {remedy}')


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
