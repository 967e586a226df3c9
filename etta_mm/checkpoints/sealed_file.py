"""Sealed files: tensors and JSON of which damage is seen.

A sealed file is safetensors, so reading it runs no code. Its header holds the
JSON under a key and the SHA-256 of that text under ``{key}_sha256``; the JSON
holds the version of its format and a hash of the tensors. The checksums tell
damage from intent; they are no signature.
"""
import hashlib
import json
from pathlib import Path
from typing import Dict, NamedTuple, Tuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..version import __version__
from .atomic import write_atomically
from .fingerprint import tensors_fingerprint

#: What torch.save writes first: a ZIP archive, formerly a pickle.
TORCHS_STARTS = (b'PK\x03\x04', b'\x80\x02\x8a')
DTYPES = ('F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL')


class Kind(NamedTuple):
    """A kind of sealed files.

    Args:
        name (str): What a message calls it.
        writer (str): What writes it.
        key (str): Of the JSON in the header.
        version_key (str): Of the version in the JSON.
        version (int): The one that is written, and alone is read.
    """
    name: str
    writer: str
    key: str
    version_key: str
    version: int


TUNED = Kind('tuned checkpoint', 'save_tuned', 'etta_mm', 'format_version', 2)
STATE = Kind('training state', 'TunedCheckpointHook', 'etta_mm_training',
             'version', 2)


def write_sealed(path, kind: Kind, content: dict,
                 tensors: Dict[str, Tensor]) -> Path:
    """Write a sealed file, whole or not at all.

    Args:
        path (str | Path): The file.
        kind (Kind): Its kind.
        content (dict): What JSON can hold, and NumPy's numbers; the version and
            the tensors' fingerprint are added.
        tensors (dict): The tensors by name.
    """
    tensors = {
        # a copy where two names share memory, which safetensors refuses
        name: tensor.detach().cpu().clone(
            memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content = {
        kind.version_key: kind.version,
        **content, 'tensors_fingerprint': tensors_fingerprint(tensors)
    }
    text = json.dumps(content, default=_as_builtin)
    return write_atomically(path, save(tensors, _header(kind, text)))


def _as_builtin(value):
    """NumPy's numbers, as which an epoch may come."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f'JSON cannot hold {value!r}, a {type(value).__name__}')


def read_sealed(path,
                kind: Kind,
                with_tensors: bool = True) -> Tuple[dict, Dict[str, Tensor]]:
    """The JSON and the tensors of a sealed file.

    Args:
        path (str | Path): The file.
        kind (Kind): The kind that it has to be of.
        with_tensors (bool): Whether to read the tensors. Defaults to True.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of no or of another kind, damaged, or of another
            version.
    """
    header, tensors = read_safetensors(path, with_tensors)
    try:
        content = json.loads(header[kind.key])
        version = content[kind.version_key]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} is a safetensors file, but no {kind.name}; '
            f'{kind.writer} writes one') from error
    if type(version) is not int or version != kind.version:
        raise ValueError(
            f'{path} has format version {version!r:.20}, this etta_mm '
            f'{__version__} reads version {kind.version}; update etta_mm, or '
            'read an older file with the etta_mm that wrote it')
    if not _header(kind, header[kind.key]).items() <= header.items():
        raise ValueError(f'the metadata of {path} is not what was saved: its '
                         'checksum differs. Take an intact copy')
    if with_tensors and content.get(
            'tensors_fingerprint') != tensors_fingerprint(tensors):
        raise ValueError(f'the tensors of {path} are not those that were '
                         'saved: their fingerprint differs. Take an intact '
                         'copy')
    return content, tensors


def is_sealed(path, kind: Kind) -> bool:
    """Whether the file is of this kind, by its header.

    Args:
        path (str | Path): The file.
        kind (Kind): The kind.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file.
    """
    return kind.key in read_safetensors(path, with_tensors=False)[0]


def _header(kind: Kind, text: str) -> Dict[str, str]:
    digest = hashlib.sha256(text.encode('utf-8', 'surrogatepass'))
    return {kind.key: text, f'{kind.key}_sha256': digest.hexdigest()}


def read_safetensors(
        path,
        with_tensors: bool = True) -> Tuple[Dict[str, str], Dict[str, Tensor]]:
    """The header and the tensors of any safetensors file.

    Args:
        path (str | Path): The file.
        with_tensors (bool): Whether to read the tensors. Defaults to True.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file, or cut short.
    """
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
                'torch.save writes it: give it as --checkpoint where a tool '
                'has that option, or make a tuned one of it with tools/tuned.py '
                'extract') from error
        raise ValueError(f'{path} is no safetensors file, or cut short '
                         f'({error}); take an intact copy') from error
    return header, tensors
