"""The report of a comparison: a Markdown table and figures.

Both are functions of the plan and the rows of ``results.json``, of nothing
else: no dates, no machine, no order of runs.
"""
import re
from pathlib import Path
from typing import List

from ..checkpoints.atomic import write_atomically
from ..markdown import table
from .figures import CURVES, PERCENT, draw_curves, draw_percent
from .plan import is_finite
from .results import Summary, summarize, unit

HEADER = ('method', 'trained %', 'learning rate', '{metric}', 'step time (s)',
          'images/s', 'peak memory', 'paper, on its own data', 'runs')


def write_report(plan, rows: List[dict], out) -> Path:
    """Write ``README.md`` and the figures into ``out``.

    Args:
        plan (Plan): The plan.
        rows (list[dict]): Its rows, see :mod:`etta_mm.comparison.results`.
        out (str | Path): The folder.

    Returns:
        Path: The Markdown file.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    summaries = summarize(plan, rows)
    figures = {
        PERCENT: draw_percent(plan, summaries),
        CURVES: draw_curves(plan, summaries)
    }
    for name, image in figures.items():
        if image is not None:
            write_atomically(out / name, image)
        else:
            (out / name).unlink(missing_ok=True)
    drawn = [name for name, image in figures.items() if image is not None]
    text = markdown(plan, rows, summaries, drawn)
    return write_atomically(out / 'README.md', text.encode())


def markdown(plan, rows: List[dict], summaries: List[Summary],
             figures: List[str]) -> str:
    """The report as Markdown."""
    finals = [
        r for r in rows if r['role'] == 'final' and r['status'] == 'finished'
    ]
    lines = [f'# {plan.host}: {plan.title}', '']
    if plan.claims:
        lines += [f'Claims: {", ".join(plan.claims)}.', '']
    if plan.verdict:
        lines += [_verdict(plan, summaries), '']
    lines += table(
        [title.format(metric=f'{plan.metric}, test') for title in HEADER],
        [_cells(plan, summary) for summary in summaries])
    devices = sorted({r['device'] for r in finals if r['device']})
    epochs = sorted({r['validation'][-1][0] for r in finals})
    is_unfinished = any(len(s.values) < len(plan.seeds) for s in summaries)
    lines += [
        '', f'Mean ± sample standard deviation over the seeds '
        f'{", ".join(map(str, plan.seeds))} (number of runs in brackets). '
        'Step time is the median of the logged steps; peak memory is that of '
        'the GPU, or without one the resident memory of the training process.'
    ]
    if finals:
        lines += [
            '', f'Trained for {", ".join(f"{e:g}" for e in epochs)} '
            f'{unit(finals)} on {"; ".join(devices)}. One after the other, the {len(rows)} runs '
            f'{"so far " * is_unfinished}'
            f'take {sum(r["wall_s"] for r in rows) / 3600:.1f} h, those that '
            'other plans share included.'
        ]
    searched = [s for s in summaries if s.candidates]
    if searched:
        lines += [
            '', '## Learning rates', '',
            f'Each candidate was trained with seed {plan.search_seed}; the '
            f'best {plan.metric} of the last validation was chosen (bold). '
            'The test images played no part.', ''
        ]
        lines += table(['method', 'trained %', 'candidates: validation'],
                        [[
                            s.point.method,
                            _number(s.percent, 2),
                            _candidates(s)
                        ] for s in searched])
    for name in figures:
        lines += ['', f'![{name[:-4].replace("_", " ")}]({name})']
    failed = [row for s in summaries for row in s.failed]
    if failed:
        lines += ['', '## Failed', '']
        lines += [f'- `{row["id"]}`: {row["error"]}' for row in failed]
    command = f'python tools/compare.py {plan.path} {plan.arguments}'.strip()
    lines += [
        '', '## Again', '', 'What is not finished of it, all of it anew in '
        'another folder, and table and figures alone:', '', '```shell',
        command, f'{command} --out work_dirs/again/{plan.name} '
        '--work-dir work_dirs/again/runs', f'{command} --report-only', '```'
    ]
    if finals:
        lines += [
            '', 'One run, such as the first; `results.json` has the command '
            'of each:', '', '```shell', finals[0]['command'], '```'
        ]
    return '\n'.join(lines) + '\n'


def _verdict(plan, summaries: List[Summary]) -> str:
    """The verdict with its figures: of ``{METHOD}`` the mean, of ``{METHOD -
    OTHER}`` how many points it is ahead; – where one has not been run."""
    means = {s.point.method: s.mean for s in summaries}

    def figure(match) -> str:
        found = [means.get(name) for name in match[1].split(' - ')]
        if None in found:
            return '–'
        if len(found) == 1:
            return f'{found[0]:.{num_digits(found[0])}f}'
        points = found[0] - found[1]
        return f'{points * (1 if abs(found[0]) > 1.5 else 100):.1f}'

    return re.sub(r'\{([^{}]+)\}', figure, plan.verdict.strip())


def _cells(plan, summary: Summary) -> List[str]:
    value, memory = '–', '–'
    if summary.mean is not None:
        digits = num_digits(summary.mean)
        value = f'{summary.mean:.{digits}f}'
        if summary.deviation is not None:
            value += f' ± {summary.deviation:.{digits}f}'
        value += f' ({len(summary.values)})'
    if summary.memory is not None:
        memory = f'{summary.memory / 2**20:,.0f} MiB'
    missing = len(plan.seeds) - len(summary.values)
    counts = [f'{len(summary.values)} finished']
    if summary.failed:
        counts.append(f'{len(summary.failed)} failed')
        missing -= sum(r['role'] == 'final' for r in summary.failed)
    if missing > 0:
        counts.append(f'{missing} to come')
    return [
        summary.point.method,
        _number(summary.percent, 2),
        '–' if summary.rate is None else f'{summary.rate:g}', value,
        _number(summary.step_time, 3),
        _number(summary.throughput, 1), memory, summary.point.paper or '–',
        ', '.join(counts)
    ]


def _candidates(summary: Summary) -> str:
    texts = []
    for rate, value in summary.candidates:
        text = f'{rate:g}: '
        text += '–' if value is None else f'{value:.{num_digits(value)}f}'
        is_best = rate == summary.rate and is_finite(value)
        texts.append(f'**{text}**' if is_best else text)
    return ', '.join(texts)


def num_digits(value: float) -> int:
    """Digits behind the point: a share has more than a percentage."""
    return 2 if abs(value) > 1.5 else 4


def _number(value, digits: int) -> str:
    return '–' if value is None else f'{value:.{digits}f}'
