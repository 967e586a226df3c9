"""What the benchmark found, as JSON, as Markdown and as a figure."""
import json
from collections import defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import Dict, List, Optional

from matplotlib.figure import Figure

from ..markdown import table

PARTS = ('forward_s', 'backward_s', 'optimizer_s')
COLUMNS = ('method', 'trained %', 'GFLOP', 'calls', 'forward ms',
           'backward ms', 'optimizer ms', 'step ms (quartiles)', '/ floor', 'images/s', 'peak MB',
           'weights MB', 'gradients MB', 'optimizer MB', 'activations MB',
           'infer 1 ms', 'infer 8 ms', 'checkpoint MB', 'start s')

#: What methods with the sampling of ``etta_mm.fast_cpu`` end in.
FAST = '_fast_cpu'
RATIOS = ('case', 'step / full', 'step / floor', 'step / peft LoRA',
          'FLOP / full', 'FLOP / floor', 'calls / full', 'peak memory / full',
          'infer 1 / base', 'infer 8 / base')


def summarize(runs: List[dict], batch: int) -> Dict[str, Dict[str, dict]]:
    """Medians over the steps of all rounds, by case and method.

    Args:
        runs (list[dict]): What ``measure`` returned, or ``case``, ``method``
            and ``error``.
        batch (int): Images of a training step.
    """
    grouped = defaultdict(lambda: defaultdict(list))
    for run in runs:
        grouped[run['case']][run['method']].append(run)
    return {
        case: {name: _summary(group, batch)
               for name, group in methods.items()}
        for case, methods in grouped.items()
    }


def _summary(group: List[dict], batch: int) -> dict:
    errors = [run['error'] for run in group if 'error' in run]
    good = [run for run in group if 'error' not in run]
    if not good:
        return dict(error=errors[0])
    steps = [
        sum(parts) for run in good for parts in zip(*(run[p] for p in PARTS))
    ]
    summary = {
        part: median(t for run in good for t in run[part])
        for part in PARTS
    }
    spread = quantiles(steps, n=4) if len(steps) > 1 else steps * 3
    summary.update(
        step_s=median(steps),
        quartiles_s=[spread[0], spread[2]],
        images_per_s=batch / median(steps),
        failed_rounds=len(errors))
    summary['latency_s'] = {
        size: median(t for run in good for t in run['latency_s'][size])
        for size in good[0]['latency_s']
    }
    for key in ('total', 'trained', 'peak_bytes', 'weight_bytes',
                'gradient_bytes', 'optimizer_bytes', 'activation_bytes',
                'checkpoint_bytes', 'start_s', 'flops', 'calls'):
        values = [run[key] for run in good if run.get(key) is not None]
        summary[key] = median(values) if values else None
    return summary


def markdown(summary: dict, settings: dict) -> str:
    """A table for each case."""
    lines = ['Settings: ' + ', '.join(f'{k} {v}' for k, v in settings.items())]
    lines += ['', '## ETTA against the others', '']
    lines += table(RATIOS, [
        ratios(case, found, sampling) for case, found in summary.items()
        for sampling in ('', FAST) if not sampling or f'etta{FAST}' in found
    ], 'lr')
    for case, methods in summary.items():
        floor = methods.get('floor', {}).get('step_s')
        lines += ['', f'## {case}', '']
        lines += table(COLUMNS, [
            _cells(name, found, floor) for name, found in methods.items()
        ], 'lr')
    return '\n'.join(lines) + '\n'


def _cells(name: str, found: dict, floor: Optional[float]) -> List[str]:
    """A row of a case's table; ``floor`` is the floor's step in seconds."""
    if 'error' in found:
        empty = [''] * (len(COLUMNS) - 2)
        return [name, f'failed: {found["error"]}', *empty]
    low, high = found['quartiles_s']
    return [
        name,
        f'{100 * found["trained"] / found["total"]:.2f}',
        f'{found["flops"] / 1e9:.1f}' if found.get('flops') else '',
        f'{found["calls"]:.0f}' if found.get('calls') else '',
        *(f'{1e3 * found[part]:.1f}' for part in PARTS),
        f'{1e3 * found["step_s"]:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})',
        f'{found["step_s"] / floor:.2f}' if floor else '',
        f'{found["images_per_s"]:.1f}',
        *(_megabytes(found[f'{key}_bytes'])
          for key in ('peak', 'weight', 'gradient', 'optimizer',
                      'activation')),
        *(f'{1e3 * seconds:.1f}' for seconds in found['latency_s'].values()),
        _megabytes(found['checkpoint_bytes'], 2),
        '' if found['start_s'] is None else f'{found["start_s"]:.1f}',
    ]


def ratios(case: str,
           methods: Dict[str, dict],
           sampling: str = '') -> List[str]:
    """What ETTA takes, in units of another method's; '' if not measured.

    Args:
        case (str): The name of the case.
        methods (dict): What was found of its methods.
        sampling (str): '' or :data:`FAST`, for ETTA and its floor; the others
            are as they are without ETTA.
    """
    own = _flat(methods.get(f'etta{sampling}', {}))
    floor = f'floor{sampling}'

    def ratio(key: str, other: str) -> str:
        theirs = _flat(methods.get(other, {})).get(key)
        return f'{own[key] / theirs:.2f}' if theirs and own.get(key) else ''

    return [
        case + sampling,
        *(ratio('step_s', other) for other in ('full', floor, 'hf_peft_lora')),
        *(ratio('flops', other) for other in ('full', floor)),
        ratio('calls', 'full'),
        ratio('peak_bytes', 'full'),
        ratio('latency_1', 'base'),
        ratio('latency_8', 'base')
    ]


def _flat(found: dict) -> dict:
    latency = found.get('latency_s', {})  # JSON makes text of its numbers
    return dict(found, **{f'latency_{size}': t for size, t in latency.items()})


def _megabytes(size, digits: int = 1) -> str:
    return '' if size is None else f'{size / 1e6:.{digits}f}'


def figure(summary: dict, path: Path) -> None:
    """The parts of a step of every method, a panel for each case."""
    fig = Figure((5 * len(summary), 4.5), layout='constrained')
    axes = fig.subplots(1, len(summary), squeeze=False)
    for axis, (case, methods) in zip(axes[0], summary.items()):
        good = {k: v for k, v in methods.items() if 'error' not in v}
        left = [0.] * len(good)
        for part in PARTS:
            widths = [1e3 * found[part] for found in good.values()]
            axis.barh(list(good), widths, left=left, label=part[:-2])
            left = [a + b for a, b in zip(left, widths)]
        if 'floor' in good:
            axis.axvline(
                1e3 * good['floor']['step_s'], color='black', linestyle=':')
        axis.invert_yaxis()
        axis.locator_params(axis='x', nbins=6)
        axis.set(title=case, xlabel='ms per step (medians)')
    axes[0][0].legend()
    fig.savefig(path, dpi=150)


def write_report(runs: List[dict], settings: dict, folder: Path) -> Path:
    """Write ``benchmark.json``, ``.md`` and ``.png`` into ``folder``.

    Returns:
        Path: The Markdown file.
    """
    summary = summarize(runs, settings['batch'])
    (folder / 'benchmark.json').write_text(
        json.dumps(
            dict(settings=settings, summary=summary, runs=runs), indent=1))
    if any('error' not in found for methods in summary.values()
           for found in methods.values()):
        figure(summary, folder / 'benchmark.png')
    text = markdown(summary, settings)
    (folder / 'benchmark.md').write_text(text)
    return folder / 'benchmark.md'
