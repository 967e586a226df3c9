"""What a resumed training takes from its checkpoint though the config has
something else: mmengine's resume brings rates, decays and schedules back as they
were saved."""
import math
from typing import Iterator, List

from mmengine.optim import _ParamScheduler

from ..listing import listing

#: What a parameter group and a schedule are given, not what they count. Of a
#: schedule's state, the rest moves.
OF_GROUPS = ('lr', 'weight_decay', 'betas', 'momentum', 'eps')
MOVING = ('last_step', 'last_epoch', 'last_value', 'base_values', 'best',
          'cooldown_counter', 'num_bad_epochs', 'num_bad_steps')


def differences(runner, checkpoint: dict) -> List[str]:
    """Settings that are others in the checkpoint than in the config, as text.

    Args:
        runner (Runner): A runner that is about to resume, its optimizer and its
            schedules built from the config.
        checkpoint (dict): What it resumes from.
    """
    found = dict.fromkeys([
        *_of_groups(runner, checkpoint), *_of_schedules(runner, checkpoint)])
    return list(found)


def check_schedules(runner, checkpoint: dict) -> None:
    """Refuse schedules of which the checkpoint has not the states: they would
    begin anew, from rates that others have changed.

    Args:
        runner (Runner): As for :func:`differences`.
        checkpoint (dict): Likewise.

    Raises:
        ValueError: If the checkpoint has the states of another number.
    """
    ours = getattr(runner, 'param_schedulers', None) or []
    saved = checkpoint.get('param_schedulers') or []
    if (isinstance(ours, list) and isinstance(saved, list)
            and len(ours) != len(saved)):
        raise ValueError(
            f'the checkpoint holds the states of {len(saved)} schedules, and '
            f'the config has {len(ours)}: the resumed training would have the '
            'rates of neither. Give it the schedules that it was trained with '
            '(and save_param_scheduler=True to CheckpointHook), or give the '
            'checkpoint as load_from, without --resume')


def _of_groups(runner, checkpoint: dict) -> Iterator[str]:
    optimizer = checkpoint.get('optimizer')
    groups = getattr(
        getattr(runner, 'optim_wrapper', None), 'param_groups', None)
    if not isinstance(optimizer, dict) or not isinstance(groups, list):
        return
    for ours, theirs in zip(groups, optimizer.get('param_groups', ())):
        for name in OF_GROUPS:
            # Schedules have changed the rate itself in both.
            key = f'initial_{name}' if f'initial_{name}' in ours else name
            if key in ours and key in theirs and _differ(
                    ours[key], theirs[key]):
                yield f'{name} {theirs[key]} (config: {ours[key]})'


def _of_schedules(runner, checkpoint: dict) -> Iterator[str]:
    schedules = getattr(runner, 'param_schedulers', None)
    saved = checkpoint.get('param_schedulers')
    if not isinstance(schedules, list) or not isinstance(saved, list):
        return
    for ours, theirs in zip(schedules, saved):
        if not isinstance(ours, _ParamScheduler):
            continue  # not built yet
        for name, value in ours.state_dict().items():
            if (name in theirs and name not in MOVING
                    and not name.startswith('_') and not callable(value)
                    and _differ(value, theirs[name])):
                yield (f'{type(ours).__name__}.{name} {theirs[name]} (config: '
                       f'{value})')


def _differ(ours, theirs) -> bool:
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) != len(theirs) or any(map(_differ, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return not math.isclose(ours, theirs, rel_tol=1e-9)
    return ours != theirs


def warning(found: List[str]) -> str:
    """One sentence about :func:`differences`.

    Args:
        found (list[str]): At least one.
    """
    return ('A resumed training goes on with the rates and schedules of its '
            f'checkpoint, not of the config: {listing(found, 4, "; ")}'
            '. Ends of schedules count iterations of the batch size and the '
            'processes of before. To train on with the settings of the config, '
            'give the checkpoint as load_from, without --resume.')
