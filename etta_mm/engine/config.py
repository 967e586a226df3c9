"""Options of the command line over a config."""
import difflib
import inspect
from typing import Optional

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils import import_modules_from_strings

#: What is read of a config besides the arguments of the runners.
READ_KEYS = {
    'activation_checkpointing', 'allow_pickle', 'auto_scale_lr', 'compile',
    'custom_imports', 'data_preprocessor', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'mp_start_method',
    'opencv_num_threads', 'runner_type', 'strategy', 'sync_bn', 'tta_model',
    'tta_pipeline'
}.union(*(inspect.signature(runner).parameters
          for runner in (Runner, FlexibleRunner))) - {'cfg'}


def merge_options(cfg: Config, options: Optional[dict]) -> None:
    """Merge ``--cfg-options``, and import what they add to ``custom_imports``:
    mmengine imports only what the file names.

    Args:
        cfg (Config): Changed in place.
        options (dict, optional): Dotted keys and values; None for none.

    Raises:
        ValueError: If an option names what nothing reads, as a variable of the
            file: what is made of it was made when the file was read.
    """
    if not options:
        return
    for key in options:
        name = key.partition('.')[0]
        if name not in READ_KEYS:
            raise ValueError(_unread(cfg, key, name))
    cfg.merge_from_dict(options)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)


def _unread(cfg: Config, key: str, name: str) -> str:
    """What to say of an option that would do nothing."""
    if name in cfg:
        return (
            f'--cfg-options {key}: {name} is a variable of the config file, '
            'which has been read with its old value, and a run reads nothing '
            'of that name. Set what is made of it, such as '
            'train_cfg.max_epochs, train_dataloader.batch_size or '
            'optim_wrapper.optimizer.lr, or edit the file.')
    near = difflib.get_close_matches(name, READ_KEYS)
    return (f'--cfg-options {key}: a run reads nothing of the name {name}. ' +
            (f'Near it: {", ".join(near)}.' if near else
             f'It reads {", ".join(sorted(READ_KEYS))}.'))
