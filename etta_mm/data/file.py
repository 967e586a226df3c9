"""Files and folders that a run needs, checked before it starts."""
import difflib
import os
import os.path as osp
import tempfile


def check_file(path: str, what: str, remedy: str) -> None:
    """Raise ``FileNotFoundError`` unless ``path`` exists.

    A path on another machine (``http://...``, ``torchvision://...``) passes.

    Args:
        path (str): A file, or the folder of a sharded checkpoint.
        what (str): What the path stands for; begins the message.
        remedy (str): What the user may do; ends the message.
    """
    if '://' in path or osp.exists(osp.expanduser(path)):
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
