"""Whether a tuned checkpoint fits a model, and what differs if not."""
import math
import re
from typing import Dict, List, Optional, Sequence

from torch import Tensor, nn

from ..layers.plan import KEYS, SITES
from .fingerprint import SHORT, base_hashes, fold
from .tuned_file import file_classes

#: Of the patterns in a file: how many, how long, and with how many choices.
MAX_PATTERNS, MAX_LENGTH, MAX_CHOICES = 32, 1000, 8
NAME_LENGTH = 50
MAX_WAYS = 4 * NAME_LENGTH**4


def check_trained_classes(model: nn.Module, metadata: dict,
                          classes: Optional[Sequence[str]], path) -> None:
    """Check that the file was trained for the classes at hand.

    Args:
        model (nn.Module): The model, whose ``dataset_meta`` counts if no
            classes are given.
        metadata (dict): Of the file.
        classes (Sequence[str], optional): The classes at hand.
        path (str | Path): The file.

    Raises:
        ValueError: If both are known and differ.
    """
    theirs = file_classes(metadata)
    if classes is None:
        classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
    if theirs is None or classes is None or list(classes) == theirs:
        return
    classes = list(classes)
    where = next((i for i, (a, b) in enumerate(zip(theirs, classes)) if a != b),
                 min(len(theirs), len(classes)))
    pair = [
        repr(names[where]) if where < len(names) else 'missing'
        for names in (theirs, classes)
    ]
    raise ValueError(
        f'{path} was trained for {len(theirs)} classes, and here are '
        f'{len(classes)}; number {where} is {pair[0]} there and {pair[1]} '
        'here. Take the data set and the head of the training')


def check_tuning(ours: dict, theirs: dict, name: str, path) -> None:
    """Check that a model is tuned as the file says.

    Args:
        ours (dict): The model's tuning.
        theirs (dict): The file's.
        name (str): Of the tuned module.
        path (str | Path): The file.

    Raises:
        ValueError: If they differ; the message names the keys.
    """
    differ = [key for key in KEYS if ours[key] != theirs[key]]
    if differ:
        raise ValueError(
            f'{path} was trained with another tuning of '
            f'{name or "the model"}: ' +
            '; '.join(
                f'{key} is {theirs[key]} there and {ours[key]} here'
                for key in differ))


def check_tensors(expected: Dict[str, Tensor], tensors: Dict[str, Tensor],
                  path) -> None:
    """Check that ``tensors`` are exactly those that the model has trained.

    Args:
        expected (dict): Those of the model; they may be without memory.
        tensors (dict): Those of the file.
        path (str | Path): The file.

    Raises:
        ValueError: If names, shapes or types differ.
    """
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    if missing or extra:
        raise ValueError(
            f'{path} does not fit the tuned model: {len(missing)} tensors are '
            f'missing {missing[:3]}, {len(extra)} are too many {extra[:3]}')
    for key, tensor in tensors.items():
        if expected[key].shape != tensor.shape:
            raise ValueError(
                f'{key} has shape {tuple(tensor.shape)} in {path} and '
                f'{tuple(expected[key].shape)} in the model; does the head '
                'have the same classes?')
        if expected[key].dtype != tensor.dtype:
            raise ValueError(
                f'{key} is {tensor.dtype} in {path} and {expected[key].dtype} '
                'in the model; bring the model to the type of the file before '
                'it is loaded')


def check_base(model: nn.Module, tuned: List[str], metadata: dict,
               path) -> None:
    """Check that the base of ``model`` is the one that the file was trained on.

    Args:
        model (nn.Module): The tuned model with the base's weights.
        tuned (list[str]): Names that are no part of the base.
        metadata (dict): Of the file.
        path (str | Path): The file.

    Raises:
        ValueError: If it is another; the message names what differs.
    """
    hashes = base_hashes(model, tuned)
    if fold(hashes) != metadata['base_fingerprint']:
        hosts = ', '.join(r['host'] for r in metadata['roots'].values())
        detail = _differences(hashes, metadata['base_hashes'])
        raise ValueError(
            f'{path}, of {hosts}, was trained on another base than this '
            f'{type(model).__name__}: the fingerprints of the base weights '
            f'differ{detail}. Load the base checkpoint that the training '
            'started from first, then the tuned one')


def _differences(ours: Dict[str, str], theirs: Dict[str, str]) -> str:
    found = dict(
        differ=[
            name for name in ours
            if name in theirs and ours[name][:SHORT] != theirs[name]
        ],
        **{
            'are missing here': sorted(set(theirs) - set(ours)),
            'are unknown to the file': sorted(set(ours) - set(theirs))
        })
    parts = [
        f'{len(names)} of {len(ours)} tensors {what} (' +
        ', '.join(names[:3]) + (', ...' if len(names) > 3 else '') + ')'
        for what, names in found.items() if names
    ]
    return f': {"; ".join(parts)}' if parts else ''


def check_patterns(tuning: dict, path) -> None:
    """Refuse regular expressions of a file that may take forever.

    A repeated group may need exponential time, and so do many choices, each
    of which doubles the ways through a pattern; a repetition takes as many
    ways as a name has letters. All patterns together get a limit of them.

    Args:
        tuning (dict): The tuning that the file asks for.
        path (str | Path): The file.

    Raises:
        ValueError: If there are too many patterns, or one is too long,
            repeats a group, or has too many repetitions or choices.
    """
    patterns = [*tuning['train'], *tuning['where']]
    for site in SITES:
        for cfg in tuning[site]:
            patterns += cfg.get('where', [])
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(
            f'the tuning of {path} has {len(patterns)} patterns; from a file, '
            f'at most {MAX_PATTERNS} are taken. If you trust it, tune the '
            'model with apply_tuning first')
    ways = 0
    for pattern in patterns:
        ways += _ways(pattern)
        if ways > MAX_WAYS:
            raise ValueError(
                f'the tuning of {path} has the pattern {pattern[:60]!r}, which '
                'may take forever; from a file, at most four repetitions (* + '
                f'{{) and {MAX_CHOICES} choices (? |), fewer where both are or '
                'other patterns have many, and no repetition of a group are '
                'taken. If you trust it, tune the model with apply_tuning '
                'first')


def _ways(pattern: str) -> float:
    """In how many ways a pattern can meet a name at most; infinity where its
    form says nothing about that."""
    plain = re.sub(r'\\.', '_', pattern, flags=re.DOTALL).replace('(?:', '(')
    choices = len(re.findall(r'[?|]', plain))
    # A comment or the flag x would part a group from its repetition.
    if (len(pattern) > MAX_LENGTH or choices > MAX_CHOICES
            or re.search(r'\)[*+{]|\(\?(#|[\w-]*x)', plain)):
        return math.inf
    return 2**choices * NAME_LENGTH**len(re.findall(r'[*+{]', plain))
