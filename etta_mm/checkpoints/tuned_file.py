"""The file of a tuned checkpoint: written and read, without any model.

It is safetensors, so reading it runs no code. Its header holds JSON metadata
under ``etta_mm`` and the SHA-256 of that text under ``etta_mm_sha256``; the
metadata holds a hash of the tensors. A file may come from anywhere: nothing in
it is used before it has been checked.
"""
import hashlib
import json
from pathlib import Path
from typing import Dict, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.registry import MODELS
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..layers.plan import SITES, normalize_tuning
from ..tuners import Tuner
from ..version import __version__
from .atomic import write_atomically
from .fingerprint import tensors_fingerprint

FORMAT_VERSION = 2
METADATA_KEY = 'etta_mm'
CHECKSUM_KEY = 'etta_mm_sha256'
STATE_KEY = 'etta_mm_training'  # of a training state, which is another file
#: What torch.save writes first: a ZIP archive, formerly a pickle.
TORCHS_STARTS = (b'PK\x03\x04', b'\x80\x02\x8a')
DTYPES = ('F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL')


def write_tuned(path, tensors: Dict[str, Tensor], metadata: dict) -> Path:
    """Write a tuned checkpoint, whole or not at all.

    Args:
        path (str | Path): The file.
        tensors (dict): The tensors by name.
        metadata (dict): What JSON can hold; the format's version and the
            tensors' fingerprint are added.
    """
    tensors = {
        # a copy where two names share memory, which safetensors refuses
        name: tensor.detach().cpu().clone(
            memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    metadata = dict(
        format_version=FORMAT_VERSION,
        **metadata,
        tensors_fingerprint=tensors_fingerprint(tensors))
    text = json.dumps(metadata, default=_as_builtin)
    header = {METADATA_KEY: text, CHECKSUM_KEY: checksum(text)}
    return write_atomically(path, save(tensors, header))


def _as_builtin(value):
    """NumPy's numbers, as which an epoch may come."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f'JSON cannot hold {value!r}, a {type(value).__name__}')


def read_metadata(path) -> dict:
    """The metadata of a tuned checkpoint.

    Args:
        path (str | Path): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no tuned checkpoint, damaged, or of a newer
            format.
    """
    return _read(path, with_tensors=False)[0]


def read_tuned(path) -> Tuple[dict, Dict[str, Tensor]]:
    """The metadata and the tensors of a tuned checkpoint.

    Args:
        path (str | Path): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no tuned checkpoint, damaged, or of a newer
            format.
    """
    metadata, tensors = _read(path, with_tensors=True)
    if tensors_fingerprint(tensors) != metadata['tensors_fingerprint']:
        raise ValueError(f'the tensors of {path} are not those that were '
                         'saved: their fingerprint differs. Take an intact '
                         'copy')
    return metadata, tensors


def is_tuned(path) -> bool:
    """Whether the file is a tuned checkpoint, by its header.

    Args:
        path (str | Path): The file.

    Raises:
        ValueError: If it is no safetensors file.
    """
    return METADATA_KEY in _open(path)[0]


def read_tensors(path) -> Tuple[dict, Dict[str, Tensor]]:
    """The header and the tensors of any safetensors file.

    Args:
        path (str | Path): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file, or cut short.
    """
    return _open(path, with_tensors=True)


def _open(path, with_tensors: bool = False):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    tensors = {}
    try:
        with safe_open(str(path), framework='pt') as file:
            header = file.metadata() or {}
            for key in file.keys() if with_tensors else ():
                dtype = file.get_slice(key).get_dtype()
                if dtype not in DTYPES:
                    raise ValueError(
                        f'{key} in {path} is of type {dtype}; a checkpoint '
                        f'holds {", ".join(DTYPES)} only')
                tensors[key] = file.get_tensor(key)
    # torch: shapes that the file may claim and no tensor can have
    except (SafetensorError, RuntimeError, OverflowError) as error:
        with open(path, 'rb') as file:
            is_torchs = file.read(4).startswith(TORCHS_STARTS)
        if is_torchs:
            raise ValueError(
                f'{path} is no safetensors file, but a full checkpoint as '
                'torch.save writes it: give it as --checkpoint where a tool has '
                'that option, or make a tuned one of it with tools/tuned.py '
                'extract') from error
        raise ValueError(f'{path} is no safetensors file, or cut short '
                         f'({error}); take an intact copy') from error
    return header, tensors


def _read(path, with_tensors: bool):
    header, tensors = _open(path, with_tensors)
    if STATE_KEY in header and METADATA_KEY not in header:
        name = Path(path).name.replace('.train.', '.')
        raise ValueError(
            f'{path} is the training state of a tuned checkpoint, without its '
            'weights; give the tuned checkpoint beside it, '
            f'{Path(path).with_name(name)}')
    try:
        metadata = json.loads(
            header[METADATA_KEY], parse_constant=_no_constant)
        version = metadata['format_version']
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} is a safetensors file without the metadata of a tuned '
            'checkpoint; write tuned checkpoints with save_tuned') from error
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f'{path} has format version {version!r:.20}, this etta_mm '
            f'{__version__} reads version {FORMAT_VERSION}; update etta_mm, or '
            'read an older file with the etta_mm that wrote it')
    if header.get(CHECKSUM_KEY) != checksum(header[METADATA_KEY]):
        raise ValueError(f'the metadata of {path} is not what was saved: its '
                         'checksum differs. Take an intact copy')
    _check_metadata(metadata, path)
    return metadata, tensors


def _no_constant(name: str):
    raise ValueError(f'{name} is no JSON')


def checksum(text: str) -> str:
    """The SHA-256 of a text, for a header to hold beside it.

    Args:
        text (str): Any text.
    """
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


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
