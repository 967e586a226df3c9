"""The classes of a data set: their names, and whether its source has them."""
from typing import List, Optional, Sequence

from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import find_folders

from ..listing import listing
from .unread import leaves, unread


def classes_key(dataset: dict) -> str:
    """Where a data set has its classes: mmpretrain's take ``classes``, too.

    Args:
        dataset (dict): The config of one that is no wrapper.
    """
    return 'classes' if dataset.get('classes') else 'metainfo.classes'


def classes_of(dataset: Optional[BaseDataset]) -> Optional[Sequence[str]]:
    """The names of the classes; None if they are not known.

    Args:
        dataset (BaseDataset, optional): What
            :func:`~etta_mm.data.unread.unread` returns.

    Raises:
        FileNotFoundError: If the folder of the class folders is missing.
    """
    if dataset is None:
        return None
    return dataset.metainfo.get('classes') or folders_of(dataset)


def folders_of(dataset: Optional[BaseDataset]) -> Optional[List[str]]:
    """The class folders, whose order the labels have; None if there are none.

    Args:
        dataset (BaseDataset, optional): What
            :func:`~etta_mm.data.unread.unread` returns.

    Raises:
        FileNotFoundError: If the folder of the class folders is missing.
    """
    if (isinstance(dataset, CustomDataset) and dataset.with_label
            and not dataset.ann_file):
        return find_folders(dataset.img_prefix)[0]
    return None


def num_labels(dataset: Optional[BaseDataset]) -> int:
    """One more than the largest label of a list file whose classes have no
    names; 0 where there is none.

    Args:
        dataset (BaseDataset, optional): What
            :func:`~etta_mm.data.unread.unread` returns.
    """
    if not (isinstance(dataset, CustomDataset) and dataset.with_label
            and dataset.ann_file and not dataset.metainfo.get('classes')):
        return 0
    lines = list_from_file(dataset.ann_file)
    return 1 + max((int(line.rpartition(' ')[2]) for line in lines), default=-1)


def are_texts(dataset: dict) -> bool:
    """Whether the model reads the names of the classes with each image, so
    that no label stands for a name.

    Args:
        dataset (dict): The config of one that is no wrapper.
    """
    return bool(dataset.get('return_classes'))


def common_classes(dataset: dict,
                   name: str = 'dataset') -> Optional[List[str]]:
    """The classes of all data sets inside the wrappers; no annotation is read.

    Args:
        dataset (dict): The config. It stays as it is.
        name (str): Where it stands in the config, for the message.

    Returns:
        list[str], optional: None if they differ, or one has none that are
        known before it is read.

    Raises:
        FileNotFoundError: If the folder of the class folders is missing.
        TypeError, ValueError: As :func:`~etta_mm.data.unread.unread`.
    """
    found = []
    for leaf, where in leaves(dataset, name):
        built = unread(leaf, where)
        classes = (classes_of(built) if built is not None else
                   (leaf.get('metainfo') or {}).get('classes'))
        if not isinstance(classes, (list, tuple)) or are_texts(leaf):
            return None
        found.append([str(item) for item in classes])
    return found[0] if found and found.count(found[0]) == len(found) else None


def check_classes(classes: Sequence[str],
                  found: Sequence[str],
                  source: str,
                  name: str,
                  key: str = 'metainfo.classes',
                  is_evaluated: bool = False) -> None:
    """Raise ``ValueError`` unless ``found`` holds ``classes`` in their order.

    The order counts since the host numbers the classes as the source does: a
    class that is absent, or in another place, shifts the labels in silence.

    Args:
        classes (Sequence[str]): The classes that the data set is to have.
        found (Sequence[str]): The classes of the source, in its order.
        source (str): The annotation file or the folder.
        name (str): Where the data set stands in the config.
        key (str): Where the classes stand in its config.
        is_evaluated (bool): Whether it is an annotation file to validate or
            test with: then the classes are those of the training, and the
            file is what has to change. Defaults to False.
    """
    missing = [item for item in classes if item not in found]
    if missing:
        raise ValueError(
            f'{name}: {source} lacks {len(missing)} of the {len(classes)} '
            f'classes: {listing(missing)}. It has {len(found)}: '
            f'{listing(found, 40)}. ' +
            (f'Set {name}.{key} to the classes of the training, and add to '
             '`categories` of the file what it lacks of them.'
             if is_evaluated else
             f'Set {name}.{key} to names that it has, and num_classes of the '
             'model to their number; or, where there are just no images of '
             'them, add an empty folder, an entry of `categories`.'))
    used = [item for item in found if item in classes]
    if used != list(classes):
        raise ValueError(
            f'{name}: {source} has the classes in another order or twice: '
            f'{listing(used, 40)}; given: {listing(classes, 40)}. Labels '
            'follow the order of the source' +
            (f', and must be those of the training: set {name}.{key} to its '
             'classes, and reorder `categories` in the file to be the same '
             '(their ids may stay).' if is_evaluated else
             f': set {name}.{key} to the same.'))
