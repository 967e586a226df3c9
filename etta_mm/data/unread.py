"""The data sets that a config names, with their paths joined and no file read.
"""
import os.path as osp
from contextlib import suppress
from itertools import chain
from typing import Iterator, Optional, Sequence, Tuple

from mmdet.datasets import CocoDataset
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmpretrain.datasets import CustomDataset

from .config_type import found_type

#: Keys of mmdet 2.x's data sets, and how they are written now.
OLD_KEYS = dict(
    classes='metainfo=dict(classes=...)', img_prefix='data_prefix=dict(img=...)')

#: Methods by which a data set reads what it is given.
READING = ('load_data_list', 'full_init', 'get_data_info', 'prepare_data')


def leaves(dataset, name: str = 'dataset') -> Iterator[Tuple[dict, str]]:
    """The data sets inside the wrappers, and where they stand in the config.

    Args:
        dataset (dict): The config. An object has been built, so it has been
            read, and is passed over.
        name (str): Where it stands in the config.
    """
    if not isinstance(dataset, dict):
        return
    if 'dataset' in dataset:
        yield from leaves(dataset['dataset'], f'{name}.dataset')
    elif 'datasets' in dataset:
        for index, inner in enumerate(dataset['datasets']):
            yield from leaves(inner, f'{name}.datasets.{index}')
    else:
        yield dataset, name


def unread(dataset: dict, name: str = 'dataset') -> Optional[BaseDataset]:
    """The data set with its paths joined and no file read, but for one that
    names its classes.

    Args:
        dataset (dict): The config of one that is no wrapper.
        name (str): Where it stands in the config, for the message.

    Returns:
        BaseDataset, optional: None if it is on another machine, or does not
        read as mmdet's ``CocoDataset`` or mmpretrain's ``CustomDataset``.

    Raises:
        TypeError: If it is given what its type does not take.
        ValueError: If its classes are a string that is no file, or written
            as in mmdet 2.x.
    """
    host = found_type(dataset, DATASETS)
    if host is None or is_remote(dataset) or not (
            _reads_like(host, CocoDataset, ('parse_data_info', 'COCOAPI'))
            and (_is_zoos(host) or host.filter_data is CocoDataset.filter_data)
            or _reads_like(host, CustomDataset, ('_find_samples', ))):
        return None
    _check_named_classes(dataset, name)
    kwargs = {k: v for k, v in dataset.items() if k not in ('type', '_scope_')}
    kwargs.update(pipeline=[], lazy_init=True)
    if not _is_zoos(host):
        # It may need what is not there before the data is read.
        with suppress(Exception):
            return host(**kwargs)
        return None
    try:
        return host(**kwargs)
    except TypeError as error:
        if 'unexpected keyword argument' not in str(error):
            raise
        now = [
            f'{key}= is now {new}' for key, new in OLD_KEYS.items()
            if key in dataset and issubclass(host, CocoDataset)
        ]
        raise TypeError(
            f'{name}, a {host.__name__}, is given what it does not take: '
            f'{error}. ' + ('; '.join(now) or 'Take it out') + '.') from error


def _check_named_classes(dataset: dict, name: str) -> None:
    metainfo = dataset.get('metainfo') or {}
    classes = metainfo.get('classes') or dataset.get('classes')
    if classes is None and 'CLASSES' in metainfo:
        raise ValueError(
            f'{name}.metainfo has the key CLASSES, which nothing reads since '
            'mmdet 2.x. Write it in lower case: metainfo=dict(classes=...).')
    if isinstance(classes, str) and not osp.isfile(osp.expanduser(classes)):
        raise ValueError(
            f'{name}: classes is {classes!r}, but must be a tuple of names '
            f'(for one class write ({classes!r}, )) or a text file that '
            'exists, one name a line.')


def is_remote(cfg: dict) -> bool:
    """Whether what the config names is on another machine.

    Args:
        cfg (dict): The config of a data set or a metric.
    """
    backend = (cfg.get('backend_args') or {}).get('backend', 'local')
    prefixes = cfg.get('data_prefix') or {}
    prefixes = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
    paths = chain([cfg.get('data_root'), cfg.get('ann_file')], prefixes)
    return backend != 'local' or any('://' in str(path or '')
                                     for path in paths)


def _is_zoos(host: type) -> bool:
    return host.__module__.split('.')[0] in ('mmdet', 'mmpretrain')


def _reads_like(host: type, parent: type, methods: Sequence[str]) -> bool:
    return issubclass(host, parent) and all(
        getattr(host, method) is getattr(parent, method)
        for method in (*methods, *READING))
