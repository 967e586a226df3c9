"""Few parameter groups, so that a fused update is one call and not hundreds."""
import logging
from typing import Dict, List

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with parameters of equal settings in one
    group.

    With ``paramwise_cfg``, mmengine gives every parameter a group of its own,
    and an optimizer updates group by group: ``foreach`` and ``fused`` then have
    nothing to gather. The updates are the same; the groups of a checkpoint are
    not, so a run is resumed with the constructor that it began with. Of
    frozen parameters, each of which mmengine warns of, there is one line.

    Args:
        optim_wrapper_cfg (dict): As for mmengine's.
        paramwise_cfg (dict, optional): As for mmengine's.
    """

    def add_params(self,
                   params: List[dict],
                   module: nn.Module,
                   prefix: str = '',
                   **kwargs) -> None:
        """Add the parameters of ``module``; of the whole model, in few groups.

        Args:
            params (list[dict]): The groups; changed in place.
            module (nn.Module): The model, or a part of it.
            prefix (str): Name of the part; of the model ''.
            **kwargs: See mmengine's.
        """
        if prefix:
            super().add_params(params, module, prefix=prefix, **kwargs)
            return
        frozen, logger = _OfFrozen(), MMLogger.get_current_instance()
        logger.addFilter(frozen)
        try:
            super().add_params(params, module, prefix=prefix, **kwargs)
        finally:
            logger.removeFilter(frozen)
        if frozen.number:
            print_log(
                f'{frozen.number} frozen parameters are left out of the '
                'optimizer.', 'current')
        params[:] = merge_groups(params)


class _OfFrozen(logging.Filter):
    """Stops and counts what mmengine says of each frozen parameter."""
    number = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        is_frozen = record.getMessage().endswith(
            'is skipped since its requires_grad=False')
        self.number += is_frozen
        return not is_frozen


def merge_groups(groups: List[dict]) -> List[dict]:
    """Join the groups whose settings are equal, in the order of the first.

    Raises:
        ValueError: If a parameter, shared by two modules, is in two of them.
    """
    merged: Dict[tuple, dict] = {}
    keys: Dict[int, tuple] = {}
    for group in groups:
        settings = {k: v for k, v in group.items() if k != 'params'}
        key = tuple(sorted((k, repr(v)) for k, v in settings.items()))
        merged.setdefault(key, dict(params=[], **settings))
        for parameter in group['params']:
            known = keys.setdefault(id(parameter), key)
            if known != key:
                raise ValueError(
                    'optim_wrapper.paramwise_cfg: a parameter of shape '
                    f'{list(parameter.shape)} that modules share has other '
                    f'settings as part of one, {dict(known)}, than of another, '
                    f'{dict(key)}. Set paramwise_cfg.bypass_duplicate=True to '
                    'take the first')
        merged[key]['params'] += group['params']
    for group in merged.values():  # once each, or a step would be two
        group['params'] = list(dict.fromkeys(group['params']))
    return list(merged.values())
