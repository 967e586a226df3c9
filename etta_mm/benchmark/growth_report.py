"""What the growth of a step came to, as Markdown and as figures."""
from pathlib import Path
from typing import List

from matplotlib.figure import Figure

from ..checkpoints.atomic import write_atomically
from ..markdown import table
from .growth import AXES, METHODS

AXIS_NAMES = dict(
    bottleneck_dims='bottleneck b',
    num_prefix='prefix length l',
    image_size='side of the image (pixels)',
    depth='layers')
#: Measure to its label and what divides it.
MEASURES = dict(
    operations=('operations (G)', 1e9),
    step_s=('step (s)', 1),
    memory_bytes=('activations, gradients, moments (MB)', 1e6))
COLUMNS = ('method', 'operations (G)', "tuners' own (G)", '/ floor',
           'step (s)', '/ floor', 'activations (MB)', 'gradients, moments (MB)',
           '/ floor')


def write_growth(rows: List[dict], settings: dict, folder: Path,
                 command: str) -> Path:
    """Write ``README.md`` and a figure for each axis into ``folder``.

    Args:
        rows (list[dict]): What :func:`etta_mm.benchmark.growth.growth` yields.
        settings (dict): What the reader must know of the machine.
        folder (Path): It exists.
        command (str): What makes all of it again.

    Returns:
        Path: The Markdown file.
    """
    for axis in AXES:
        _figure([row for row in rows if row['axis'] == axis], axis,
                folder / f'{axis}.png')
    return write_atomically(folder / 'README.md',
                            growth_page(rows, settings, command).encode())


def growth_page(rows: List[dict], settings: dict, command: str) -> str:
    """The page as Markdown: for each axis a figure and a table a case."""
    lines = [
        '# How a training step grows', '',
        'One size changes at a time; the others are the paper\'s b = 400 and '
        'l = 50, the depth of the zoo model, and the image and batch below. The '
        '**floor** is the same model with one scalar in the place of the '
        'lowest tuner, its head trained as well. Operations are '
        'those of the products, forward and backward; what the tuners '
        'themselves do (three times their share of the forward pass) is one of '
        'the columns. Activations are the bytes that autograd keeps; moments '
        'are AdamW\'s. Operations and bytes are exact; seconds are medians of '
        'few steps, which all models of a figure and a case make in turn, and '
        'scatter where the machine is not quiet.', '', 'Made by:', '', '```shell', command, '```', '',
        'Settings: ' + ', '.join(f'{k} {v}' for k, v in settings.items()) + '.'
    ]
    for axis, name in AXIS_NAMES.items():
        lines += ['', f'## {name[0].upper()}{name[1:]}', '',
                  f'![{name}]({axis}.png)']
        for case in dict.fromkeys(row['case'] for row in rows):
            chosen = [r for r in rows if (r['case'], r['axis']) == (case, axis)]
            lines += ['', f'### {case}', '']
            lines += table((name, *COLUMNS), _cells(chosen), 'rlr')
    return '\n'.join(lines) + '\n'


def memory(row: dict) -> int:
    """What a step needs besides the weights, in bytes."""
    return row['activation_bytes'] + row['state_bytes']


def _cells(rows: List[dict]) -> List[List[str]]:
    floors = {r['value']: r for r in rows if r['method'] == 'floor'}
    cells = []
    for row in rows:
        floor = floors[row['value']]
        cells.append([
            str(row['value']), row['method'],
            f'{row["operations"] / 1e9:.1f}',
            f'{row["own_operations"] / 1e9:.1f}',
            f'{row["operations"] / floor["operations"]:.2f}',
            f'{row["step_s"]:.3f}', f'{row["step_s"] / floor["step_s"]:.2f}',
            f'{row["activation_bytes"] / 1e6:.1f}',
            f'{row["state_bytes"] / 1e6:.1f}',
            f'{memory(row) / memory(floor):.2f}'
        ])
    return cells


def _figure(rows: List[dict], axis: str, path: Path) -> None:
    """A row for each measure, a column for each case, a line a method."""
    cases = list(dict.fromkeys(row['case'] for row in rows))
    fig = Figure((4 * len(cases), 3 * len(MEASURES)), layout='constrained')
    panels = fig.subplots(
        len(MEASURES), len(cases), squeeze=False, sharex='col')
    for measure, line in zip(MEASURES, panels):
        label, unit = MEASURES[measure]
        for case, panel in zip(cases, line):
            for method in METHODS:
                found = [
                    dict(r, memory_bytes=memory(r)) for r in rows
                    if (r['case'], r['method']) == (case, method)
                ]
                panel.plot([r['value'] for r in found],
                           [r[measure] / unit for r in found],
                           marker='o',
                           label=method)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
        line[0].set_ylabel(label)
    for case, panel in zip(cases, panels[0]):
        panel.set_title(case)
    for panel in panels[-1]:
        panel.set_xlabel(AXIS_NAMES[axis])
    panels[0][0].legend()
    fig.savefig(path, dpi=120, metadata={'Software': None})
