"""The file of a tuned checkpoint: written and read, without any model.

It is a sealed file (:mod:`.sealed_file`), whose JSON is the metadata. A file
may come from anywhere: nothing in it is used before it has been checked.
"""
import json
from pathlib import Path
from typing import Dict, Sequence, Tuple, Union

from mmengine.registry import MODELS
from torch import Tensor

from ..layers.plan import SITES, normalize_tuning
from ..tuners import Tuner
from .sealed_file import STATE, TUNED, is_sealed, read_sealed


def read_metadata(path) -> dict:
    """The metadata of a tuned checkpoint.

    Args:
        path (str | Path): The file.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_tuned`.
    """
    return read_tuned(path, with_tensors=False)[0]


def read_tuned(path,
               with_tensors: bool = True) -> Tuple[dict, Dict[str, Tensor]]:
    """The metadata and the tensors of a tuned checkpoint.

    Args:
        path (str | Path): The file.
        with_tensors (bool): Whether to read the tensors. Defaults to True.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no tuned checkpoint, damaged, or of another
            format.
    """
    if is_sealed(path, STATE):
        name = Path(path).name.replace('.train.', '.')
        raise ValueError(
            f'{path} is the training state of a tuned checkpoint, without its '
            'weights; give the tuned checkpoint beside it, '
            f'{Path(path).with_name(name)}')
    metadata, tensors = read_sealed(path, TUNED, with_tensors)
    _check_metadata(metadata, path)
    return metadata, tensors


def _check_metadata(metadata: dict, path) -> None:
    fields = dict(
        roots=dict, base_fingerprint=str, base_hashes=dict, base_dtypes=dict,
        versions=dict, info=dict, tensors_fingerprint=str)
    for key, kind in fields.items():
        if not isinstance(metadata.get(key), kind):
            _refuse(path, f'{key} is no {kind.__name__}')
    for key in ('base_hashes', 'versions'):
        for name, value in metadata[key].items():
            if not isinstance(value, str):
                _refuse(path, f'{key} of {name:.60} is no str')
    if not metadata['roots']:
        _refuse(path, 'roots names nothing that was tuned')
    for name, root in metadata['roots'].items():
        if not (isinstance(root, dict) and isinstance(root.get('host'), str)):
            _refuse(path, f'roots[{name!r:.60}] has no host')
        _check_tuning(root.get('tuning'), path)
    classes = file_classes(metadata)
    if classes is not None and not (isinstance(classes, list) and all(
            isinstance(name, str) for name in classes)):
        _refuse(path, 'the classes are no list of str')


def _check_tuning(tuning, path) -> None:
    """Check the tuning itself. How large it is, is checked where it meets a
    model, against the shapes of the tensors."""
    if not isinstance(tuning, dict):
        _refuse(path, f'the tuning is no dict but {tuning!r:.60}')
    tuning.setdefault('conv', [])  # a file may leave it out where it is empty
    for site in SITES:
        tuners = tuning.get(site, [])
        if not isinstance(tuners, list):
            _refuse(path, f'{site} of the tuning is no list')
        for cfg in tuners:
            kind = cfg.get('type') if isinstance(cfg, dict) else None
            # Not MODELS.get, which imports the module that a name asks for.
            cls = MODELS.module_dict.get(kind) if isinstance(kind,
                                                             str) else None
            if not (isinstance(cls, type) and issubclass(cls, Tuner)):
                _refuse(
                    path, f'{site} of the tuning names {kind!r:.60}, which is '
                    'no tuner')
    try:
        normal = normalize_tuning(tuning)
    except (TypeError, KeyError, ValueError, OverflowError,
            RecursionError) as error:
        raise ValueError(
            f'the metadata of {path} is damaged: {error}') from error
    if normal != tuning:
        _refuse(path, 'the tuning is not written out')


def _refuse(path, what: str) -> None:
    raise ValueError(f'the metadata of {path} is damaged: {what}. Take an '
                     'intact copy')


def file_classes(metadata: dict):
    """The names of the classes that the head was trained for, or None.

    Args:
        metadata (dict): Of a tuned checkpoint.
    """
    meta = metadata['info'].get('dataset_meta')
    return meta.get('classes') if isinstance(meta, dict) else None


def plain_metainfo(metainfo: Union[dict, Sequence[dict]]) -> dict:
    """The part of a data set's metainfo that JSON can hold.

    Args:
        metainfo (dict | Sequence[dict]): Of the data set, or of a checkpoint
            trained on it; of data sets that mmdet's ``ConcatDataset`` joins,
            one for each if they differ: then what all have alike.
    """
    if not metainfo:
        return {}
    if not isinstance(metainfo, dict):
        first, *others = map(plain_metainfo, metainfo)
        return {
            key: value
            for key, value in first.items() if all(
                json.dumps(other.get(key)) == json.dumps(value)
                for other in others)
        }
    plain = {}
    for key, value in metainfo.items():
        if key == 'classes' and isinstance(value, (list, tuple)):
            value = [str(name) for name in value]  # mmpretrain takes numbers
        if isinstance(value, (str, int, float, list, tuple)):
            try:
                json.dumps(value)
            except TypeError:
                continue
            plain[key] = value
    return plain
