"""What is compared: points, and the runs that they come to."""
import math
from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple

MAX_BEYOND = 4  # rates that a search may add to those of the plan


@dataclass(frozen=True, eq=False)
class Point:
    """One method at one budget: what becomes one row of the table.

    Attributes:
        method (str): Name of the method.
        budget (int): Index among the budgets of the method.
        config (str): Config file, seen from the checkout.
        options (dict): Dotted options over the config.
        rates (tuple[float]): The first candidates of the learning rate, the
            only one, or none for the config's own.
        paper (str): The paper's figure, or ''.
    """
    method: str
    budget: int
    config: str
    options: dict
    rates: Tuple[float, ...]
    paper: str


@dataclass(frozen=True)
class Run:
    """One training: a point with its learning rate (None: the config's) and
    its seed."""
    point: Point
    rate: Optional[float]
    seed: int


@dataclass(frozen=True)
class Plan:
    """A plan, checked; :mod:`etta_mm.comparison.plan_file` says what its parts
    mean. ``arguments`` are those of tools/compare.py behind its path."""
    name: str
    path: str
    host: str
    metric: str
    claims: List[str]
    title: str
    verdict: str
    seeds: List[int]
    search_seed: int
    epochs: Optional[int]
    lr_key: str
    arguments: str
    points: List[Point]

    def candidates(self, point: Point,
                   values: Dict[float, Optional[float]]) -> List[Run]:
        """The runs that search the learning rate of ``point``, as far as they
        are known by now.

        When all have ended and the best, or one as good, lies at an end, the
        next rate beyond joins them, half a power of ten away (1e-3, 3e-3,
        1e-2): a rate is chosen between two that are worse, not where the plan
        stopped looking.

        Args:
            point (Point): One of the plan.
            values (dict): Last validation of the rates that have ended, None
                for one that failed. One that is not finite is no better.
        """
        if len(point.rates) < 2:
            return []
        rates = sorted(point.rates)
        while len(rates) < len(point.rates) + MAX_BEYOND:
            if any(rate not in values for rate in rates):
                break
            able = [rate for rate in rates if is_finite(values[rate])]
            if not able:
                break
            top = max(values[rate] for rate in able)
            if values[rates[-1]] == top:  # also if a lower one is as good
                rates.append(beyond(rates[-1], 1))
            elif values[rates[0]] == top:
                rates.insert(0, beyond(rates[0], -1))
            else:
                break
        return [Run(point, rate, self.search_seed) for rate in rates]

    def with_rates(self, rows: List[dict]) -> 'Plan':
        """This plan without its searches: every point at the learning rate
        that an earlier one chose.

        Args:
            rows (list[dict]): Those of its ``results.json``.

        Raises:
            ValueError: If they have no final run of one of the points.
        """
        chosen = {(r['method'], r['budget']): r['lr']
                  for r in rows if r['role'] == 'final'}
        points = []
        for point in self.points:
            if len(point.rates) > 1:
                key = (point.method, point.budget)
                if key not in chosen:
                    raise ValueError(
                        f'no final run of {point.method!r}, budget '
                        f'{point.budget}, tells the learning rate; finish '
                        'that comparison first, or search')
                point = replace(point, rates=(chosen[key], ))
            points.append(point)
        return replace(self, points=points)

    def finals(self, point: Point, rate: Optional[float]) -> List[Run]:
        """The runs of ``point`` that count, at the chosen rate."""
        return [Run(point, rate, seed) for seed in self.seeds]


def is_finite(value: Optional[float]) -> bool:
    """Whether there is a value and it is none of a training that diverged."""
    return value is not None and math.isfinite(value)


def beyond(rate: float, steps: int) -> float:
    """The rate that many half powers of ten away: 1e-3, 3e-3, 1e-2."""
    halves = round(2 * math.log10(rate)) + steps
    return float(f'{10 ** (halves / 2):.0e}')
