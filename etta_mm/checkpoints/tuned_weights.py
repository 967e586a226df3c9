"""A base and a tuned checkpoint under one name that mmengine can load.

Whatever takes the path of a checkpoint (mmdet's ``DetInferencer``,
mmpretrain's ``ImageClassificationInferencer``, their ``test.py``) takes
``etta_mm://CONFIG::TUNED`` or ``etta_mm://CONFIG::TUNED::BASE`` as well: the
weights of the config's model, with the base (by default what ``load_from`` of
the config names) and the tuned checkpoint on top. All checks of
:func:`etta_mm.load_tuned` are made.
"""
from pathlib import Path
from typing import Optional

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import CheckpointLoader

from ..data.config_type import found_type
from ..data.file import check_config, check_file
from .convert import build_tuned_model
from .tuned_file import file_classes, read_metadata

SCHEME = 'etta_mm://'
SEPARATOR = '::'


def tuned_weights(config, tuned, base: Optional[str] = None) -> str:
    """The name of base and tuned checkpoint together, for any inferencer.

    Example::

        config, tuned = 'configs/mine.py', 'work_dirs/mine/epoch_12.safetensors'
        inferencer = DetInferencer(config, tuned_weights(config, tuned))
        inferencer('image.jpg', out_dir='outputs')

    Args:
        config (str | Path): The file of the training's config.
        tuned (str | Path): The tuned checkpoint.
        base (str, optional): The base's checkpoint, or where it is to be
            downloaded. Defaults to None, ``load_from`` of the config, or its
            ``init_cfg`` without one.

    Raises:
        FileNotFoundError: If one of the files does not exist.
        ValueError: If ``config`` is no config, or ``tuned`` no tuned
            checkpoint.
    """
    check_config(str(config))
    check_file(str(tuned), 'The tuned checkpoint', 'Give one that exists.')
    read_metadata(tuned)
    _check_base(Config.fromfile(config), base)
    return SCHEME + SEPARATOR.join(
        [str(config), str(tuned)] + ([] if base is None else [str(base)]))


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_tuned_weights(filename: str, map_location=None) -> dict:
    """Read base and tuned checkpoint as mmengine reads one checkpoint.

    Args:
        filename (str): What :func:`tuned_weights` returns.
        map_location: Unused: the weights are on the CPU.

    Raises:
        FileNotFoundError: If one of the files does not exist.
        ValueError: If they do not belong together; the message says how.
    """
    parts = filename.removeprefix(SCHEME).split(SEPARATOR)
    if len(parts) not in (2, 3):
        raise ValueError(
            f'{filename} is not of the form {SCHEME}CONFIG{SEPARATOR}TUNED or '
            f'{SCHEME}CONFIG{SEPARATOR}TUNED{SEPARATOR}BASE; let '
            'etta_mm.tuned_weights make it')
    config, tuned, base = (*parts, None)[:3]
    cfg = Config.fromfile(config)
    _check_base(cfg, base)
    model, metadata = build_tuned_model(cfg, tuned, base, as_config=True)
    dataset_meta = metadata['info'].get('dataset_meta')
    if file_classes(metadata) is None:
        dataset_meta = _test_metainfo(cfg)
    meta = dict(cfg=cfg.pretty_text)  # an inferencer may get nothing else
    if dataset_meta is not None:
        meta['dataset_meta'] = dataset_meta
    return dict(state_dict=model.state_dict(), meta=meta)


def _check_base(cfg: Config, base: Optional[str]) -> None:
    if base is not None:
        check_file(
            str(base), 'The base of the tuned checkpoint',
            'Give one that exists.')
    elif cfg.get('load_from') is not None:
        check_file(
            cfg.load_from, 'The base of the tuned checkpoint, load_from of '
            f'{Path(cfg.filename).name},', 'Say where it is with base= '
            '(--base), or stand where the training stood.')


def _test_metainfo(cfg: Config) -> Optional[dict]:
    """The classes of the data to test on, where the tuned file has none."""
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    metainfo = dataset.get('metainfo') or {}
    if 'classes' not in metainfo and 'type' in dataset:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            cls = found_type(dataset, DATASETS)
        metainfo = getattr(cls, 'METAINFO', {})
    return dict(metainfo) if 'classes' in metainfo else None
