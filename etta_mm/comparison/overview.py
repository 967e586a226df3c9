"""The rivals of all hosts in one table: that of the README."""
from pathlib import Path
from typing import List

from ..markdown import table
from .plan_file import read_plan
from .report import num_digits
from .results import Summary, read_rows, summarize

PLANS = ('vit_rivals', 'detr_rivals', 'deformable_detr_rivals')
EVIDENCE = 'docs/evidence'
BEGIN, END = '<!-- results: python tools/overview.py -->', '<!-- end -->'


def overview(root: Path) -> List[str]:
    """A line a method, a column a host: test values and trained shares.

    A method that has not been run with all seeds of its plan has no figure.

    Args:
        root (Path): The checkout.

    Returns:
        list[str]: The lines of a Markdown table.
    """
    columns, cells = [], {}
    for name in PLANS:
        plan = read_plan(root / f'configs/comparison/{name}.py', root)
        path = root / EVIDENCE / name / 'results.json'
        rows = read_rows(path) if path.exists() else []
        measure = 'top-1' if 'top1' in plan.metric else 'AP'
        columns.append(f'[{plan.host}]({EVIDENCE}/{name}/README.md), {measure}'
                       if rows else f'{plan.host}, {measure}')
        for summary in summarize(plan, rows):
            cells.setdefault(summary.point.method, {})[name] = _cell(
                summary, len(plan.seeds))
    return table(['', *columns], [[
        method, *(found.get(name, '') for name in PLANS)
    ] for method, found in cells.items()])


def total_cost(root: Path) -> List[str]:
    """What all runs of all plans take, those that plans share once.

    Args:
        root (Path): The checkout.

    Returns:
        list[str]: A line.
    """
    runs = {
        row['id']: row['wall_s'] or 0.
        for path in sorted(root.glob('configs/comparison/*.py'))
        for row in read_rows(root / EVIDENCE / path.stem / 'results.json')
    }
    hours = sum(runs.values()) / 3600
    return [
        f'{len(runs)} runs, one after the other {hours:.1f} h as they were '
        f'run, two at once {hours / 2:.1f} h'
    ]


def replace_table(text: str, lines: List[str]) -> str:
    """``text`` with ``lines`` between the two marks.

    Raises:
        ValueError: If it has no such marks.
    """
    if BEGIN not in text or END not in text.split(BEGIN)[1]:
        raise ValueError(f'there is no {BEGIN!r} with an {END!r} behind it')
    before, rest = text.split(BEGIN, 1)
    return '\n'.join([before + BEGIN, *lines, END + rest.split(END, 1)[1]])


def _cell(summary: Summary, num_seeds: int) -> str:
    if len(summary.values) < num_seeds:
        return 'not yet run'
    text = f'{summary.mean:.{num_digits(summary.mean)}f}'
    if summary.deviation is not None:
        text += f' ± {summary.deviation:.{num_digits(summary.mean)}f}'
    return f'{text} ({summary.percent:.2f} %)'
