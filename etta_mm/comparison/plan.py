"""What is compared: points, and the runs that they come to."""
from dataclasses import dataclass
from typing import List, Optional, Tuple


@dataclass(frozen=True, eq=False)
class Point:
    """One method at one budget: what becomes one row of the table.

    Attributes:
        method (str): Name of the method.
        budget (int): Index among the budgets of the method.
        config (str): Config file, seen from the checkout.
        options (dict): Dotted options over the config.
        rates (tuple[float]): Candidates of the learning rate; none for the
            config's own.
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
    mean."""
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
    is_quick: bool
    points: List[Point]

    def candidates(self, point: Point) -> List[Run]:
        """The runs that search the learning rate of ``point``, if any."""
        if len(point.rates) < 2:
            return []
        return [Run(point, rate, self.search_seed) for rate in point.rates]

    def finals(self, point: Point, rate: Optional[float]) -> List[Run]:
        """The runs of ``point`` that count, at the chosen rate."""
        return [Run(point, rate, seed) for seed in self.seeds]

    @property
    def num_runs(self) -> int:
        """Trainings in all; a chosen candidate counts once."""
        total = 0
        for point in self.points:
            searched = len(self.candidates(point))
            total += searched + len(self.seeds)
            total -= bool(searched) and self.search_seed in self.seeds
        return total
