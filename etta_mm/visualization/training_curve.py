"""A training curve from mmengine's scalar log."""
from pathlib import Path
from typing import Dict

from matplotlib.figure import Figure

from ..engine.scalar_log import read_records


def read_scalars(work_dir) -> list:
    """The records of the newest ``scalars.json`` below ``work_dir``.

    Raises:
        FileNotFoundError: If no training has logged there.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'there is no */vis_data/scalars.json below {work_dir}; give the '
            'work_dir of a training')
    return list(read_records(logs[-1]))


def training_curve(path, work_dirs: Dict[str, str], metric: str) -> Path:
    """Draw the loss by iteration and ``metric`` by epoch of some trainings.

    Args:
        path (str | Path): The PNG to write.
        work_dirs (dict): Work directory of each training, by its label.
        metric (str): Key of the metric, such as 'coco/bbox_mAP'.

    Returns:
        Path: ``path``.
    """
    figure = Figure((9, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for label, work_dir in work_dirs.items():
        records = read_scalars(work_dir)
        losses = [(r['step'], r['loss']) for r in records if 'loss' in r]
        values = [(r['step'], r[metric]) for r in records if metric in r]
        left.plot(*zip(*losses), label=label)
        right.plot(*zip(*values), marker='o', label=label)
    left.set(xlabel='iteration', ylabel='loss')
    right.set(xlabel='epoch', ylabel=metric)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    return Path(path)
