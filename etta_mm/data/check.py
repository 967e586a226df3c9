"""The data sets that a config names, checked before a run starts.

Each check raises ``FileNotFoundError`` for what is not there and ``ValueError``
for what does not fit, with what was given, what is allowed and what to do. Data
on other machines (``s3://...``, a ``backend_args`` that is not local) and data
sets of other types than these are left alone, for their own classes to check:

- mmdet's ``CocoDataset`` and those that inherit its way of reading: annotation
  file, classes, images;
- mmpretrain's ``CustomDataset`` and its heirs (``ImageNet``): class folders, or
  list file and images.

The annotations are read once more than training needs: 15 s of CPU and 2.6 GB
for a file of 410 MB, the size of COCO's train2017.
"""
import json
import os
import os.path as osp
from collections import defaultdict
from itertools import chain
from typing import List, Sequence

from mmdet.datasets import CocoDataset
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import find_folders

from .file import check_file


def check_dataset(dataset: dict, name: str = 'dataset') -> None:
    """Check the config of a data set; wrappers are descended into.

    Args:
        dataset (dict): The config. It stays as it is.
        name (str): Where it stands in the config, for the message.

    Raises:
        FileNotFoundError: If annotations, images or folders are missing.
        ValueError: If annotations or folders do not fit the classes.
    """
    if not isinstance(dataset, dict):
        return  # an object: it has been built, so it has been read
    if 'dataset' in dataset:
        return check_dataset(dataset['dataset'], f'{name}.dataset')
    if 'datasets' in dataset:
        for index, inner in enumerate(dataset['datasets']):
            check_dataset(inner, f'{name}.datasets.{index}')
        return
    host = dataset.get('type')
    if isinstance(host, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            host = registry.get(host)
    if host is None or _is_remote(dataset):
        return
    if _reads_like(host, CocoDataset, ('load_data_list', 'parse_data_info')):
        _check_coco(_build_unread(host, dataset), name)
    elif _reads_like(host, CustomDataset, ('load_data_list', '_find_samples')):
        named = dataset.get('classes') or (dataset.get('metainfo')
                                           or {}).get('classes')
        _check_custom(_build_unread(host, dataset), bool(named), name)


def check_evaluator(evaluator, name: str = 'evaluator') -> None:
    """Raise ``FileNotFoundError`` if a metric's ``ann_file`` is missing.

    Args:
        evaluator (dict | list[dict]): Config of one or several metrics.
        name (str): Where it stands in the config, for the message.
    """
    if isinstance(evaluator, dict):
        evaluator = evaluator.get('metrics', evaluator)
    metrics = evaluator if isinstance(evaluator,
                                      (list, tuple)) else [evaluator]
    for metric in metrics:
        if (isinstance(metric, dict)
                and isinstance(metric.get('ann_file'), str)
                and not _is_remote(metric)):
            check_file(
                metric['ann_file'], f'The annotation file of {name}',
                f'Set {name}.ann_file, usually to that of the data set that '
                'is evaluated.')


def check_classes(classes: Sequence[str], found: Sequence[str], source: str,
                  name: str) -> None:
    """Raise ``ValueError`` unless ``found`` holds ``classes`` in their order.

    The order counts since the host numbers the classes as the source does: a
    class that is absent, or in another place, shifts the labels in silence.

    Args:
        classes (Sequence[str]): The classes that the data set is to have.
        found (Sequence[str]): The classes of the source, in its order.
        source (str): The annotation file or the folder.
        name (str): Where the data set stands in the config.
    """
    if isinstance(classes, str):
        raise ValueError(
            f'{name}: classes is {classes!r}, but must be a tuple of names '
            f'(for one class write ({classes!r}, )) or a text file that '
            'exists, one name a line.')
    missing = [item for item in classes if item not in found]
    if missing:
        raise ValueError(
            f'{name}: {source} lacks {len(missing)} of the {len(classes)} '
            f'classes: {_first(missing)}. It has {len(found)}: '
            f'{_first(found, 40)}. Set {name}.metainfo.classes to names that '
            'it has, and num_classes of the model to their number.')
    used = [item for item in found if item in classes]
    if used != list(classes):
        raise ValueError(
            f'{name}: {source} has the classes in another order or twice: '
            f'{_first(used, 40)}; given: {_first(classes, 40)}. Labels follow '
            f'the order of the source: set {name}.metainfo.classes to the '
            'same.')


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
        if osp.isdir(parent):
            with os.scandir(parent) as entries:
                held = {entry.name for entry in entries}
        missing += [file for file in inside if osp.basename(file) not in held]
    if missing:
        raise FileNotFoundError(
            f'{name}: {len(missing)} of the {len(files)} images that {source} '
            f'names are not in {folder!r}: {_first(missing)}. Set {name}.'
            'data_root and data_prefix to where they are, fetch them, or take '
            'them out of the annotations.')


def _check_coco(dataset: CocoDataset, name: str) -> None:
    check_file(dataset.ann_file, f'{name}: the annotation file',
               f'Set {name}.data_root and {name}.ann_file.')
    with open(dataset.ann_file, encoding='utf-8') as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(
                f'{name}: {dataset.ann_file} is not a JSON file: '
                f'{error}. Give one in COCO\'s format.') from error
    if not isinstance(content, dict) or not {'images', 'categories'
                                             } <= content.keys():
        raise ValueError(
            f'{name}: {dataset.ann_file} is not in COCO\'s format, which has '
            'the lists "images", "annotations" and "categories". Convert it, '
            'or name the type of data set that reads it.')
    check_classes(dataset.metainfo['classes'],
                  [item['name'] for item in content['categories']],
                  dataset.ann_file, name)
    if 'img' not in dataset.data_prefix:
        raise ValueError(
            f'{name} has data_prefix={dataset.data_prefix}, which '
            'lacks the folder of the images. Write data_prefix='
            "dict(img='FOLDER/').")
    images = content['images']
    if (dataset.filter_cfg or {}).get('filter_empty_gt') \
            and not dataset.test_mode:
        # These are dropped before anyone opens them.
        annotated = {
            item['image_id']
            for item in content.get('annotations', ())
        }
        images = [item for item in images if item['id'] in annotated]
    if dataset._indices is None:
        check_images(dataset.data_prefix['img'],
                     [item['file_name'] for item in images], dataset.ann_file,
                     name)


def _check_custom(dataset: CustomDataset, with_named_classes: bool,
                  name: str) -> None:
    folder = dataset.img_prefix
    check_file(folder, f'{name}: the folder of images',
               f'Set {name}.data_root and {name}.data_prefix.')
    if dataset.ann_file:
        check_file(dataset.ann_file, f'{name}: the annotation file',
                   f'Set {name}.data_root and {name}.ann_file.')
        files = list_from_file(dataset.ann_file)
        if dataset.with_label:
            files = [line.strip().rsplit(' ', 1)[0] for line in files]
        if dataset._indices is None:
            check_images(folder, files, dataset.ann_file, name)
    elif dataset.with_label:
        found = find_folders(folder)[0]
        # The names that a type brings along (ImageNet's) are not those of the
        # folders, but there must be a folder for each.
        if with_named_classes:
            check_classes(dataset.CLASSES, found, folder, name)
        if dataset.CLASSES and len(found) != len(dataset.CLASSES):
            raise ValueError(
                f'{name}: {folder} has {len(found)} folders '
                f'({_first(found)}), but the data set {len(dataset.CLASSES)} '
                f'classes ({_first(dataset.CLASSES)}). There must be one '
                f'folder a class: move the others away or set {name}.metainfo.'
                'classes.')


def _build_unread(host: type, dataset: dict):
    """The data set with its paths joined and no file read."""
    kwargs = {k: v for k, v in dataset.items() if k not in ('type', '_scope_')}
    return host(**{**kwargs, 'pipeline': [], 'lazy_init': True})


def _reads_like(host: type, parent: type, methods: Sequence[str]) -> bool:
    return issubclass(host, parent) and all(
        getattr(host, method) is getattr(parent, method) for method in methods)


def _is_remote(cfg: dict) -> bool:
    backend = (cfg.get('backend_args') or {}).get('backend', 'local')
    prefixes = cfg.get('data_prefix') or {}
    prefixes = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
    paths = chain([cfg.get('data_root'), cfg.get('ann_file')], prefixes)
    return backend != 'local' or any('://' in (path or '') for path in paths)


def _first(names: List[str], number: int = 3) -> str:
    more = ', ...' if len(names) > number else ''
    return ', '.join(map(str, names[:number])) + more
