"""Check the hooks of a training of a tuned model."""
import warnings

from mmengine.config import Config
from torch import nn

from ..checkpoints.tuned_checkpoint import tuned_roots
from ..data.config_type import unscoped_name

#: Hooks that break a tuned model in several processes, by name, and why.
SYNCHRONISERS = dict(
    SyncBuffersHook='averages the frozen statistics as well, and so rounds them',
    SyncNormHook='averages frozen norms as well, and loads them by themselves')


def check_hooks(model: nn.Module, cfg: Config) -> None:
    """Refuse hooks that would break a tuned model in a training, and warn where
    that of the tuned checkpoints is missing.

    Args:
        model (nn.Module): The model of the run; its numbers are not read.
        cfg (Config): The config of the run, with its ``custom_hooks``.

    Raises:
        ValueError: If one of them moves what is frozen.
    """
    if not tuned_roots(model):
        return
    hooks = {unscoped_name(hook) for hook in cfg.get('custom_hooks') or ()}
    for hook in hooks & SYNCHRONISERS.keys():
        if cfg.get('launcher', 'none') != 'none':
            raise ValueError(
                f'custom_hooks has a {hook}, which {SYNCHRONISERS[hook]}; the '
                'base would no longer be that of its checkpoint. Leave it out: '
                'what is frozen is the same in all processes.')
    if hooks >= {'MeanTeacherHook', 'TunedCheckpointHook'}:
        raise ValueError(
            'custom_hooks has a MeanTeacherHook, which averages the frozen '
            'weights of the teacher as well, and so rounds them: tuned '
            'checkpoints would fit no base. Leave the TunedCheckpointHook out; '
            'the .pth holds everything.')
    if not hooks & {'MeanTeacherHook', 'TunedCheckpointHook'}:
        warnings.warn(
            'custom_hooks has no TunedCheckpointHook: what is trained will be '
            'saved in full checkpoints only. A list in a config takes the place '
            "of the one that it inherits: repeat dict(type='ParameterReportHook') "
            "and dict(type='TunedCheckpointHook') beside hooks of your own.")
