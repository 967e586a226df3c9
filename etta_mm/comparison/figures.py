"""The figures of a comparison, as PNG bytes."""
import io
from typing import Dict, List, Optional

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from .results import Summary

PERCENT = 'trained_percent.png'
CURVES = 'training_curves.png'
MARKERS = 'osD^vP*X<>ph'
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw_percent(plan, summaries: List[Summary]) -> Optional[bytes]:
    """The metric against the trained share, a line a method, with error bars.

    Where every method has one point, many share a percentage: a second panel
    then has a line with the error bar of each method, and is the legend.
    """
    summaries = [s for s in summaries if s.values]
    if not summaries:
        return None
    styles = _styles(plan)
    methods = list(dict.fromkeys(s.point.method for s in summaries))
    single = len(methods) == len(summaries)
    figure = Figure((10, max(4., 0.34 * len(methods) + 1.4)),
                    layout='constrained')
    axes = figure.subplots(1, 2) if single else [figure.subplots()]
    for place, method in enumerate(methods):
        own = sorted((s for s in summaries if s.point.method == method),
                     key=lambda s: s.percent)
        # Side by side: bars at one percentage would hide each other.
        shift = 1. if single else 1 + 0.012 * (place - (len(methods) - 1) / 2)
        axes[0].errorbar([s.percent * shift for s in own],
                         [s.mean for s in own],
                         None if single else [s.deviation or 0. for s in own],
                         label=method,
                         capsize=3,
                         **styles[method])
    percents = [s.percent for s in summaries]
    low, high = min(percents), max(percents)
    if low > 0 and high / low > 8:
        axes[0].set_xscale('log')
        ticks = [t for t in TICKS if low / 1.5 <= t <= high * 1.5]
        axes[0].set_xticks(ticks, [f'{t:g}' for t in ticks])
        axes[0].xaxis.set_minor_locator(NullLocator())
        axes[0].xaxis.set_minor_formatter(NullFormatter())
    elif high - low < 0.5:  # a difference of one scalar is none
        axes[0].set_xlim(low - 0.5, high + 0.5)
    axes[0].set(xlabel='trained parameters (%)', ylabel=f'{plan.metric}, test')
    if single:
        for place, method in enumerate(methods):
            summary = summaries[place]
            axes[1].errorbar([summary.mean], [place],
                             xerr=[summary.deviation or 0.],
                             capsize=3,
                             **styles[method])
        axes[1].set_yticks(
            range(len(methods)),
            [f'{s.point.method} ({s.percent:.1f} %)' for s in summaries])
        axes[1].invert_yaxis()
        axes[1].set(xlabel=f'{plan.metric}, test')
    else:
        figure.legend(loc='outside right upper')
    return _png(figure, axes)


def draw_curves(plan, summaries: List[Summary]) -> Optional[bytes]:
    """The validation by epoch (or iteration), mean over the seeds, a line a point; nothing
    where each was validated once."""
    summaries = [s for s in summaries if len(s.curve) > 1]
    if not summaries:
        return None
    styles = _styles(plan)
    several = [s.point.method for s in summaries]
    figure = Figure((10, max(4.2, 0.26 * len(summaries) + 0.8)),
                    layout='constrained')
    axes = figure.subplots()
    shades = {}
    for summary in summaries:
        method = summary.point.method
        label, alpha = method, 1.
        if several.count(method) > 1:  # fainter for the smaller budgets
            shades[method] = shades.get(method, 0) + 1
            alpha = 0.25 + 0.75 * shades[method] / several.count(method)
            label = f'{method}, {summary.percent:.1f} %'
        axes.plot(*zip(*summary.curve), label=label, alpha=alpha,
                  **styles[method])
    axes.set(xlabel=summaries[0].unit[:-1], ylabel=f'{plan.metric}, validation')
    figure.legend(loc='outside right upper')
    return _png(figure, [axes])


def _styles(plan) -> Dict[str, dict]:
    """Colour and marker of each method of the plan, the same in all."""
    colours = matplotlib.colormaps['tab10'].colors
    methods = dict.fromkeys(point.method for point in plan.points)
    return {
        method: dict(
            color=colours[index % len(colours)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle='-' if index < len(colours) else '--',
            markersize=5)
        for index, method in enumerate(methods)
    }


def _png(figure: Figure, axes) -> bytes:
    for one in axes:
        one.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=120)
    return file.getvalue()
