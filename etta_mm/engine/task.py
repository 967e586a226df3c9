"""What a config's task decides: loaders, drawing, and what is written."""
import inspect
from typing import Optional

import torch
from mmdet.visualization.palette import get_palette
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..data.config_type import found_type
from ..data.unread import leaves, unread

DETECTION, CLASSIFICATION = 'mmdet', 'mmpretrain'


def task_scope(cfg: Config) -> Optional[str]:
    """'mmdet' or 'mmpretrain', or what else ``default_scope`` names.

    Configs in Python style have none: there it is the package that the class
    of the model comes from, or inherits from; None without one.
    """
    scope = cfg.get('default_scope')
    if scope is not None:
        return scope
    kind = found_type(cfg.get('model') or {}, MODELS)
    for cls in inspect.getmro(kind) if inspect.isclass(kind) else ():
        package = cls.__module__.split('.')[0]
        if package in (DETECTION, CLASSIFICATION):
            return package
    return None


def set_loaders(cfg: Config) -> None:
    """Give the loaders of a classification config mmpretrain's defaults."""
    if task_scope(cfg) != CLASSIFICATION:
        return
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is not None:
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers',
                              loader.get('num_workers', 0) > 0)


def draw(cfg: Config, show: bool, show_dir: Optional[str],
         wait_time: float) -> None:
    """Have the predictions of a test drawn.

    Args:
        cfg (Config): The config of the test.
        show (bool): Whether to show them in a window.
        show_dir (str, optional): Folder to write them to.
        wait_time (float): Seconds that a window stays.

    Raises:
        ValueError: If the config has no hook that draws.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need the hook that draws: set default_hooks.'
            "visualization to dict(type='DetVisualizationHook') for detection, "
            "dict(type='VisualizationHook') for classification.")
    if task_scope(cfg) == CLASSIFICATION:
        hook.update(enable=True, interval=1, out_dir=show_dir)
    else:
        hook.update(draw=True, test_out_dir=show_dir)
        _set_colours(cfg)
    hook.update(show=show, wait_time=wait_time)


def colours(metainfo: dict) -> Optional[list]:
    """A colour for each class, if the palette of a data set has too few.

    A data set keeps the palette of its type, COCO's of 80 colours, whatever
    its classes, and mmdet ends at the first object without a colour.

    Args:
        metainfo (dict): Of the data set.
    """
    number, palette = len(metainfo.get('classes') or ()), metainfo.get('palette')
    if not isinstance(palette, list) or len(palette) >= number:
        return None
    return [tuple(map(int, c)) for c in get_palette('random', number)]


def _set_colours(cfg: Config) -> None:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for leaf, name in leaves(cfg.test_dataloader.get('dataset')):
            built = unread(leaf, name)
            palette = None if built is None else colours(built.metainfo)
            if palette is not None:
                leaf['metainfo'] = dict(leaf.get('metainfo') or {},
                                        palette=palette)


def dump_predictions(cfg: Config, out: str) -> None:
    """Have the predictions of a test written to ``out``, a pickle."""
    dump = dict(
        type='mmdet.DumpDetResults'
        if task_scope(cfg) == DETECTION else 'DumpResults',
        out_file_path=out)
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        metrics = evaluator.metrics
        evaluator.metrics = [
            *([metrics] if isinstance(metrics, dict) else metrics), dump
        ]
    elif isinstance(evaluator, dict):
        cfg.test_evaluator = [evaluator, dump]
    else:
        cfg.test_evaluator = [*evaluator, dump]
