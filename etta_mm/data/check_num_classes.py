"""The number of classes of the data and of the model, compared before a run.
"""
from typing import Iterator, Tuple

from mmpretrain.datasets import CustomDataset

from ..listing import listing
from .classes import (are_texts, classes_key, classes_of, folders_of,
                      num_labels)
from .unread import leaves, unread

#: Heads whose classes are not those of the data: objects against ground, and
#: things with stuff.
OTHER_HEADS = ('rpn_head', 'semantic_head')


def check_num_classes(model: dict, dataset: dict,
                      name: str = 'dataset') -> None:
    """Raise ``ValueError`` unless model and data have equally many classes.

    With fewer in the model, labels without a score end in an error of an
    index, or count as background; with more, scores without a label never
    train, or predict classes that have no name.

    Deviations from mmdet's ``NumClassCheckHook``: the config is compared, not
    the model; classifiers are, too; models of language, whose
    ``num_classes`` is the length of a text, are not.

    Source: mmdet 3.5.1 (OneDL) `engine/hooks/num_class_check_hook.py`.

    Args:
        model (dict): Config of the model. It stays as it is.
        dataset (dict): Config of the data set, which has passed
            :func:`~etta_mm.data.check.check_dataset`. It stays as it is.
        name (str): Where the data set stands in the config.
    """
    if not isinstance(model, dict) or 'language_model' in model:
        return
    for leaf, where in leaves(dataset, name):
        built = unread(leaf, where)
        classes, labels = classes_of(built), num_labels(built)
        for head, number in _heads(model, 'model'):
            if labels > number:
                raise ValueError(
                    f'{built.ann_file}, of {where}, has the label '
                    f'{labels - 1}, and {head}.num_classes is {number}, for '
                    f'labels from 0 to {number - 1}. Set {head}.num_classes='
                    f'{labels}, or correct the file.')
            if classes and number != len(classes):
                raise ValueError(
                    f'{where} has {len(classes)} classes ({listing(classes)}), '
                    f'and {head}.num_classes is {number}. Set {head}.'
                    f'num_classes={len(classes)}, or {where}.'
                    f'{classes_key(leaf)} to the {number} names that the '
                    'model tells apart.')


def check_one_hot(cfg: dict, dataset: dict, name: str = 'dataset') -> None:
    """Raise ``ValueError`` unless labels that the data preprocessor makes one
    number for each class (for Mixup, CutMix) are as many as the classes.

    Args:
        cfg (dict): The config of the run. It stays as it is.
        dataset (dict): Config of the data set to train on, which has passed
            :func:`~etta_mm.data.check.check_dataset`. It stays as it is.
        name (str): Where the data set stands in the config.
    """
    model, key = cfg.get('model') or {}, 'data_preprocessor'
    if model.get(key) is not None:
        preprocessor, key = model[key], f'model.{key}'
    else:
        preprocessor = cfg.get(key) or {}
    number, train_cfg = preprocessor.get('num_classes'), model.get('train_cfg')
    mixes = isinstance(train_cfg, dict) and train_cfg.get('augments')
    if number is None or not (mixes or preprocessor.get('to_onehot')
                              or preprocessor.get('batch_augments')):
        return
    for leaf, where in leaves(dataset, name):
        classes = classes_of(unread(leaf, where))
        if classes and len(classes) != number:
            raise ValueError(
                f'{where} has {len(classes)} classes ({listing(classes)}), and '
                f'{key}.num_classes is {number}. Set {key}.num_classes='
                f'{len(classes)}: labels are mixed as one number for each')


def check_same_classes(train: dict, val: dict) -> None:
    """Raise ``ValueError`` if the data to train on have other classes than
    those to validate on.

    Labels are the places of the names in their order, so that another name
    counts as the class that has its place.

    Args:
        train (dict): Config of a data set that has passed
            :func:`~etta_mm.data.check.check_dataset`. It stays as it is.
        val (dict): The other.
    """
    names = 'train_dataloader.dataset', 'val_dataloader.dataset'
    found = [[(unread(leaf, where), where)
              for leaf, where in leaves(dataset, name) if not are_texts(leaf)]
             for dataset, name in zip((train, val), names)]
    for our_leaf, here in found[0]:
        for leaf, there in found[1]:
            both = our_leaf, leaf
            ours, theirs = map(classes_of, both)
            folders = [folders_of(one) for one in both]
            # Names of their own may be given to the same folders, not to others.
            if all(folders) and (folders[0] != folders[1] or not all(
                    one.metainfo.get('classes') for one in both)):
                ours, theirs = folders
            if ours and theirs and list(ours) != list(theirs):
                differ = sorted(set(ours) ^ set(theirs), key=str)
                remedy = (
                    'folders: give both the same folders, and the same '
                    'classes if any' if isinstance(leaf, CustomDataset) else
                    f'annotation file: set {there}.metainfo.classes to those '
                    'of the training, and bring `categories` of '
                    f'{leaf.ann_file} into the same order (their ids may '
                    'stay), with those added that it lacks')
                raise ValueError(
                    f'{here} and {there} have other classes: '
                    f'{listing(differ) or "the order differs"}. Labels follow '
                    f'the order of the {remedy}')


def _heads(part,
           name: str,
           is_head: bool = False) -> Iterator[Tuple[str, int]]:
    """The heads that say how many classes they have, and the number."""
    if isinstance(part, dict):
        if is_head and isinstance(part.get('num_classes'), int):
            yield name, part['num_classes']
        for key, inner in part.items():
            yield from _heads(
                inner, f'{name}.{key}',
                key.endswith('head') and key not in OTHER_HEADS)
    elif isinstance(part, (list, tuple)):
        for index, inner in enumerate(part):
            yield from _heads(inner, f'{name}.{index}', is_head)
