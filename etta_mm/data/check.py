"""The data sets that a config names, checked before a run starts.

Each check raises ``FileNotFoundError`` for what is not there and ``ValueError``
for what does not fit, with what was given, what is allowed and what to do. Data
on other machines (``s3://...``, a ``backend_args`` that is not local) and data
sets of other types than these are left alone, for their own classes to check:

- mmdet's ``CocoDataset`` and those that inherit its way of reading: annotation
  file, classes, images;
- mmpretrain's ``CustomDataset`` and its heirs (``ImageNet``): class folders and
  their images, or list file and images.

Each annotation file is read once, before the run reads it: 15 s of CPU and
2.6 GB for a file of 410 MB, the size of COCO's train2017.
"""
import os
import os.path as osp
from collections import defaultdict
from typing import List, Optional, Sequence

from mmdet.datasets import CocoDataset
from mmengine.fileio import list_dir_or_file, list_from_file
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import find_folders

from ..listing import listing
from .annotations import (annotated, check_annotated, check_boxes, check_keys,
                          read_coco)
from .classes import check_classes, classes_key
from .config_type import unscoped_name
from .file import check_file
from .unread import leaves, unread

#: Endings of pictures that mmpretrain does not take by itself.
OTHER_PICTURES = ('.webp', '.tiff', '.jfif', '.jpe', '.jp2', '.gif', '.avif',
                  '.heic')
#: Folders that hold no class, but a part of the data.
SPLITS = {'train', 'val', 'test', 'valid', 'validation', 'images', 'masks',
          'labels', 'annotations'}


def check_dataset(dataset: dict, name: str = 'dataset') -> Optional[dict]:
    """Check the config of a data set; wrappers are descended into.

    Args:
        dataset (dict): The config. It stays as it is.
        name (str): Where it stands in the config, for the message.

    Returns:
        dict, optional: What its annotation file holds, for
        :func:`~etta_mm.data.check_evaluator.check_evaluator` not to read it
        again; None if it is not in COCO's format, or there are several.

    Raises:
        FileNotFoundError: If annotations, images or folders are missing.
        TypeError: If a data set is given what its type does not take.
        ValueError: If annotations or folders do not fit the classes.
    """
    inside, content = list(leaves(dataset, name)), None
    for leaf, where in inside:
        built = unread(leaf, where)
        with_files = built is not None and built._indices is None and (
            _loads_files(leaf.get('pipeline') or ()))
        if isinstance(built, CocoDataset):
            content = _check_coco(built, with_files, len(inside) == 1, where)
        elif built is not None:
            named = leaf.get('classes') or (leaf.get('metainfo')
                                            or {}).get('classes')
            _check_custom(built, bool(named), with_files, classes_key(leaf),
                          where)
    return content


def _loads_files(pipeline: Sequence[dict]) -> bool:
    """Whether the images are read from this machine's disk, and each must be
    there; so it is where nothing says otherwise."""
    for step in pipeline:
        kind = unscoped_name(step)
        if kind.startswith('Load') and 'Annotations' not in kind:
            args = step.get('backend_args') or step.get('file_client_args') or {}
            return (kind == 'LoadImageFromFile' and
                    not step.get('ignore_empty') and
                    args.get('backend', 'local') in ('local', 'disk'))
    return True


def check_images(folder: str, files: Sequence[str], source: str,
                 name: str) -> None:
    """Raise ``FileNotFoundError`` if images are not on disk.

    Every folder is listed once; no image is opened.

    Args:
        folder (str): The folder to which ``files`` are relative.
        files (Sequence[str]): The images.
        source (str): The file that names them.
        name (str): Where the data set stands in the config.
    """
    by_folder = defaultdict(list)
    for file in files:
        by_folder[osp.dirname(osp.join(folder, file))].append(file)
    missing = []
    for parent, inside in by_folder.items():
        held = set()
        if osp.isdir(parent or '.'):
            with os.scandir(parent or '.') as entries:
                held = {entry.name for entry in entries}
        missing += [file for file in inside if osp.basename(file) not in held]
    if missing:
        raise FileNotFoundError(
            f'{name}: {len(missing)} of the {len(files)} images that {source} '
            f'names are not in {folder!r}: {listing(missing)}. Set {name}.'
            'data_root and data_prefix to where they are, fetch them, or take '
            'them out of the annotations.')


def _check_coco(dataset: CocoDataset, with_files: bool, is_alone: bool,
                name: str) -> Optional[dict]:
    check_file(dataset.ann_file, f'{name}: the annotation file',
               f'Set {name}.data_root and {name}.ann_file.')
    content = read_coco(dataset.ann_file, name)
    check_classes(dataset.metainfo['classes'],
                  [item['name'] for item in content['categories']],
                  dataset.ann_file, name, is_evaluated=dataset.test_mode)
    if 'img' not in dataset.data_prefix:
        raise ValueError(
            f'{name} has data_prefix={dataset.data_prefix}, which '
            'lacks the folder of the images. Write data_prefix='
            "dict(img='FOLDER/').")
    check_keys(content, 'images', ('id', 'file_name', 'width', 'height'),
               dataset.ann_file, name)
    check_keys(content, 'annotations',
               ('id', 'image_id', 'category_id', 'bbox', 'area'),
               dataset.ann_file, name)
    images = _kept(dataset, content)
    if not images:
        raise ValueError(
            f'{name}: none of the {len(content["images"])} images of '
            f'{dataset.ann_file} is left with filter_cfg={dataset.filter_cfg}.'
            ' Give annotations with images, and to train, with boxes of '
            f'{listing(dataset.metainfo["classes"])}, or another filter_cfg.')
    # Images without any may stand beside others, as background or unlabelled.
    if not dataset.test_mode and (is_alone or content.get('annotations')):
        classes = dataset.metainfo['classes']
        check_annotated(content, classes, dataset.ann_file, name)
        check_boxes(content, classes, images, dataset.ann_file, name)
    if with_files:
        check_images(dataset.data_prefix['img'],
                     [item['file_name'] for item in images], dataset.ann_file,
                     name)
    return content if is_alone else None


def _kept(dataset: CocoDataset, content: dict) -> List[dict]:
    """The images that the data set reads: the others may be missing.

    Source: mmdet 3.5.1 (OneDL) `datasets/coco.py:CocoDataset.filter_data`.
    """
    images, filters = content['images'], dataset.filter_cfg or {}
    if dataset.test_mode:
        return images
    if filters.get('filter_empty_gt'):
        ids = annotated(content, dataset.metainfo['classes'])
        images = [item for item in images if item['id'] in ids]
    if filters.get('min_size'):
        images = [
            item for item in images
            if min(item['width'], item['height']) >= filters['min_size']
        ]
    return images


def _without_labels(lines: List[str], dataset: CustomDataset,
                    name: str) -> List[str]:
    """The files that a list names, each before its label."""
    files, classes = [], dataset.CLASSES
    for number, line in enumerate(lines, 1):
        file, _, label = line.strip().rpartition(' ')
        if not (file and label.isdecimal()
                and (not classes or int(label) < len(classes))):
            last = f' to {len(classes) - 1}' if classes else ''
            raise ValueError(
                f'{name}: line {number} of {dataset.ann_file} is '
                f'{line.strip()!r}, but must be a file, a space and a label: '
                f'a number from 0{last}. For a list of files alone set '
                f'{name}.with_label=False.')
        files.append(file)
    return files


def _check_custom(dataset: CustomDataset, with_named_classes: bool,
                  with_files: bool, key: str, name: str) -> None:
    folder = dataset.img_prefix or '.'
    if with_files or not dataset.ann_file:
        check_file(folder, f'{name}: the folder of images',
                   f'Set {name}.data_root and {name}.data_prefix.')
    if dataset.ann_file:
        check_file(dataset.ann_file, f'{name}: the annotation file',
                   f'Set {name}.data_root and {name}.ann_file.')
        files = list_from_file(dataset.ann_file)
        if dataset.with_label:
            files = _without_labels(files, dataset, name)
        if with_files:
            check_images(folder, files, dataset.ann_file, name)
    elif dataset.with_label:
        found = find_folders(folder)[0]
        # The names that a type brings along (ImageNet's) are not those of the
        # folders, but there must be a folder for each.
        if with_named_classes and not _are_other_names(dataset.CLASSES, found):
            check_classes([str(item) for item in dataset.CLASSES], found,
                          folder, name, key)
        if dataset.CLASSES and len(found) != len(dataset.CLASSES):
            raise ValueError(
                f'{name}: {folder} has {len(found)} folders '
                f'({listing(found)}), but the data set {len(dataset.CLASSES)} '
                f'classes ({listing(dataset.CLASSES)}). There must be one '
                f'folder a class: move the others away or set {name}.{key}.')
    if not dataset.ann_file:
        _check_extensions(dataset, folder, name)


def _are_other_names(classes: Sequence[str], found: Sequence[str]) -> bool:
    """Whether classes have names of their own beside those of the folders, such
    as n01440764: tench. What may be a mistake is none."""
    ours, theirs = ({str(item).casefold() for item in items}
                    for items in (classes, found))
    if len(classes) != len(found) or theirs & (ours | SPLITS):
        return False
    print_log(
        'The classes are not the names of their folders: ' + listing(
            [f'{folder} is {item}' for folder, item in zip(found, classes)],
            10), 'current')
    return True


def _check_extensions(dataset: CustomDataset, folder: str, name: str) -> None:
    """mmpretrain passes over files by their names and says nothing."""
    files = list(list_dir_or_file(folder, list_dir=False, recursive=True))
    others = sorted(file for file in files
                    if file.lower().endswith(OTHER_PICTURES)
                    and not dataset.is_valid_file(file))
    taken = ', '.join(sorted(dataset.extensions))
    if others:
        raise ValueError(
            f'{name}: {len(others)} of the {len(files)} files in {folder} are '
            f'pictures that would be passed over ({listing(others)}), for '
            f'their names end in none of {taken}. Convert them, move them '
            'away, or, where OpenCV reads them, add their endings: '
            f'{name}.extensions.')
    if not any(map(dataset.is_valid_file, files)):
        raise FileNotFoundError(
            f'{name}: none of the {len(files)} files in {folder} ends in one '
            f'of {taken}. Set {name}.data_root and {name}.data_prefix to where '
            'the pictures are.')
