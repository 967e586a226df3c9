"""The settings of one run: its config with all options merged in."""
import argparse
import copy
import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Iterable, Iterator, Optional

from mmengine.config import Config, DictAction

LR_KEY = 'optim_wrapper.optimizer.lr'
#: Whether a validation is logged by the epoch it follows, or the iteration.
BY_EPOCH_KEY = 'default_hooks.logger.log_metric_by_epoch'
DELETE_KEY = '_delete_'  # of mmengine


@dataclass(frozen=True)
class Settings:
    """What a run is, resolved.

    Attributes:
        id (str): Names the run and its folder: method, rate, seed and the
            beginning of the hash.
        hash (str): Of the whole resolved config and of the bytes of the
            weights that it starts from. Two runs of a method with one hash
            are one.
        cfg (Config): The resolved config.
        options (dict): Dotted options that make ``cfg`` from the config file.
    """
    id: str
    hash: str
    cfg: Config
    options: dict

    def get(self, key: str):
        """The value of a dotted key of the config, None if there is none."""
        value = self.cfg
        for part in key.split('.'):
            if not hasattr(value, 'get'):
                return None
            value = value.get(part)
        return value

    def write(self, path: Path) -> Path:
        """Write the resolved config as a file that the tools read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Config.dump takes seconds to make the text pretty.
        path.write_text(''.join(f'{key} = {value!r}\n'
                                for key, value in self.cfg.to_dict().items()))
        return path

    def command(self, config: str, work_dir: str) -> str:
        """The training as a reader can start it from the checkout.

        Args:
            config (str): The config file of the method.
            work_dir (str): The folder of the run, which holds config.py; that
                is named where an option cannot stand on a command line (a
                list of dicts).
        """
        words = [f'{key}={_text(value)}' for key, value in self.options.items()]
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        parsed = parser.parse_args(['--cfg-options', *words]).cfg_options
        if parsed != self.options:
            return f'python tools/train.py {work_dir}/config.py'
        return shlex.join(
            ['python', 'tools/train.py', config, '--cfg-options', *words])


def resolve(plan, run, root) -> Settings:
    """Resolve one run of a plan.

    Args:
        plan (Plan): The plan.
        run (Run): One of its runs.
        root (Path): The checkout.

    Raises:
        ValueError: If the options do not fit the config, or if it keeps its
            checkpoints elsewhere than in its work dir.
    """
    point = run.point
    cfg = copy.deepcopy(_config(str(Path(root) / point.config)))
    try:
        cfg.merge_from_dict(copy.deepcopy(point.options))
        options = stack(
            point.options,
            _logged(cfg),
            {} if plan.epochs is None else _last(cfg, plan.epochs),
            {} if run.rate is None else {plan.lr_key: run.rate},
            {'randomness.seed': run.seed})
        cfg = copy.deepcopy(_config(str(Path(root) / point.config)))
        cfg.merge_from_dict(copy.deepcopy(options))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'the options of {point.method!r} do not fit {point.config}: '
            f'{error.args[0]}') from error
    _check_checkpoints(cfg, point.method)
    digest = _hash(cfg, str(root))
    slug = re.sub(r'[^a-z0-9]+', '_', point.method.lower()).strip('_')
    rate = '' if run.rate is None else f'-lr{run.rate:g}'
    return Settings(
        id=f'{slug}{rate}-seed{run.seed}-{digest[:6]}',
        hash=digest,
        cfg=cfg,
        options=options)


def _check_checkpoints(cfg: Config, method: str) -> None:
    """The test of a run and its next session take them from its work dir; in
    another folder all runs would write over each other's."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') is not None:
        raise ValueError(
            f'default_hooks.checkpoint.out_dir={hook["out_dir"]!r} of '
            f'{method!r}: a comparison needs the checkpoints of a run in its '
            "own folder; set it to None in the plan's options")


def stack(*layers: dict) -> dict:
    """Lay options over each other and flatten them to dotted keys.

    Args:
        *layers (dict): Dotted or nested options; the later goes over the
            earlier, and with ``_delete_`` replaces all of it below there.
    """
    flat = {}
    for layer in layers:
        layer = _flatten(layer)
        for key in layer:
            prefix = key[:-len(DELETE_KEY)] if key.endswith(
                f'.{DELETE_KEY}') else f'{key}.'
            parents = ['.'.join(key.split('.')[:i])
                       for i in range(1, key.count('.') + 1)]
            for old in [o for o in flat
                        if o.startswith(prefix) or o in parents]:
                del flat[old]
                if old in parents:  # a plain value becomes a dict
                    flat[f'{old}.{DELETE_KEY}'] = True
        flat.update(layer)
    return flat


def _flatten(options: dict, prefix: str = '') -> dict:
    flat = {}
    for key, value in options.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _logged(cfg: Config) -> dict:
    """Options that log each validation by what the training counts: mmengine
    has all those of a training by iterations at epoch 0."""
    by_epoch = 'max_iters' not in cfg.get('train_cfg', {})
    hook = (cfg.get('default_hooks') or {}).get('logger') or {}
    if by_epoch and hook.get('log_metric_by_epoch', True):
        return {}
    return {BY_EPOCH_KEY: by_epoch, 'default_hooks.logger.type': hook.get(
        'type', 'LoggerHook')}


def _last(cfg: Config, epochs: int) -> dict:
    """Options that make the training of ``cfg`` last ``epochs``."""
    if 'max_epochs' not in cfg.get('train_cfg', {}):
        raise KeyError('epochs needs a config that counts them, with '
                       'train_cfg.max_epochs; leave epochs out')
    before = cfg.train_cfg.max_epochs
    options = {'train_cfg.max_epochs': epochs}
    if cfg.train_cfg.get('val_interval', 1) > epochs:
        options['train_cfg.val_interval'] = epochs
    schedulers = cfg.get('param_scheduler') or []
    is_list = isinstance(schedulers, (list, tuple))
    for index, scheduler in enumerate(schedulers if is_list else [schedulers]):
        name = f'param_scheduler.{index}' if is_list else 'param_scheduler'
        for key in ('end', 'T_max'):
            if scheduler.get('by_epoch', True) and \
                    scheduler.get(key) == before:
                options[f'{name}.{key}'] = epochs
    return options


@lru_cache(maxsize=None)
def _config(path: str) -> Config:
    return Config.fromfile(path)


def _hash(cfg: Config, root: str) -> str:
    settings = cfg.to_dict()
    for key in ('work_dir', 'launcher', 'resume'):
        settings.pop(key, None)
    text = json.dumps(settings, sort_keys=True, default=str)
    text = text.replace(json.dumps(root)[1:-1], '.')
    digest = hashlib.sha256(text.encode())
    for path in (cfg.get('load_from'), *_pretrained(settings)):
        digest.update(file_hash(path, root).encode())
    return digest.hexdigest()[:16]


def _pretrained(part) -> Iterator[str]:
    """The checkpoints of all ``init_cfg`` that name one."""
    if isinstance(part, dict):
        if part.get('type') == 'Pretrained' and part.get('checkpoint'):
            yield part['checkpoint']
        part = part.values()
    if not isinstance(part, str) and isinstance(part, Iterable):
        for inner in part:
            yield from _pretrained(inner)


@lru_cache(maxsize=None)
def file_hash(path: Optional[str], root: str) -> str:
    """SHA-256 of a file seen from ``root``; '' if there is none."""
    file = Path(root, os.path.expanduser(path)) if path else None
    if file is None or not file.is_file():
        return ''  # none, missing (the training says so) or on another machine
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _text(value) -> str:
    if isinstance(value, (list, tuple)):
        return f'[{",".join(_text(item) for item in value)}]'
    return str(value)
