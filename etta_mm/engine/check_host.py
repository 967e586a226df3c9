"""Where a config may say ``tuning``."""
import inspect
from typing import Iterator, Tuple

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ImageClassifier

from ..data.config_type import found_type


def check_hosts(cfg: Config) -> None:
    """Check that what is given ``tuning`` in the model of a config takes it.

    Args:
        cfg (Config): The config of a run. It stays as it is.

    Raises:
        ValueError: If it stands at a type without it, such as
            ``ImageClassifier`` or mmdet's own ``DETR``.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for node, where in _tuned_nodes(cfg.get('model'), 'model'):
            host = found_type(node, MODELS)
            if isinstance(host, type) and not _takes_tuning(host):
                raise ValueError(f'{where}.tuning: {host.__name__} takes no '
                                 f'tuning. {_advice(node, where, host)}')


def _tuned_nodes(cfg, where: str) -> Iterator[Tuple[dict, str]]:
    if isinstance(cfg, (list, tuple)):
        for index, inner in enumerate(cfg):
            yield from _tuned_nodes(inner, f'{where}.{index}')
    elif isinstance(cfg, dict):
        if 'type' in cfg and isinstance(cfg.get('tuning'), dict):
            yield cfg, where
        for key, inner in cfg.items():
            if key != 'tuning':
                yield from _tuned_nodes(inner, f'{where}.{key}')


def _takes_tuning(host: type) -> bool:
    return any('tuning' in inspect.signature(cls.__init__).parameters
               for cls in host.__mro__ if '__init__' in vars(cls)
               and inspect.isfunction(cls.__init__))


def _advice(node: dict, where: str, host: type) -> str:
    name = f'ET{host.__name__}'
    if found_type(dict(node, type=name), MODELS) is not None:
        return f'Set {where}.type to {name!r}, which does.'
    if issubclass(host, ImageClassifier):
        return ('Of a classifier it is the backbone that is tuned: write '
                f'{where}.backbone.tuning, and ETVisionTransformer, or a host '
                'of your own, as its type.')
    return ('Types that do are ETDETR, ETDeformableDETR and '
            'ETVisionTransformer, and what is registered as one in three '
            f'lines: class {name}(TunedHost, {host.__name__}).')
