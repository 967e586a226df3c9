"""Where the trainable parameters sit."""
from collections import defaultdict
from dataclasses import dataclass
from typing import List, Tuple

from torch import nn

from ..tuners import Tuner


@dataclass
class ParameterReport:
    """Number of parameters of a model.

    Attributes:
        total (int): All parameters, the tuners' included.
        trainable (int): Those with ``requires_grad``.
        rows (list[tuple]): (component, part, total, trainable), with the
            component a child of the model and the part either a tuner's type
            or 'base'.
    """
    total: int
    trainable: int
    rows: List[Tuple[str, str, int, int]]

    @property
    def base(self) -> int:
        """Parameters of the base model: all but the tuners'."""
        return sum(row[2] for row in self.rows if row[1] == 'base')

    @property
    def added(self) -> int:
        """The tuners' parameters."""
        return self.total - self.base

    @property
    def percent(self) -> float:
        """Trainable share of all parameters, in percent."""
        return 100 * self.trainable / self.total if self.total else 0.

    @property
    def percent_of_base(self) -> float:
        """Trainable parameters in percent of the base model's alone."""
        return 100 * self.trainable / self.base if self.base else 0.

    def to_dict(self) -> dict:
        """What JSON can hold: the numbers, and the rows as dicts."""
        keys = ('component', 'part', 'parameters', 'trained')
        return dict(
            total=self.total,
            base=self.base,
            added=self.added,
            trained=self.trainable,
            percent=self.percent,
            percent_of_base=self.percent_of_base,
            rows=[dict(zip(keys, row)) for row in self.rows])

    def __str__(self) -> str:
        lines = [('component', 'part', 'parameters', 'trained', 'percent')]
        for component, part, total, trainable in self.rows + [
            ('all', '', self.total, self.trainable)
        ]:
            lines.append((component, part, f'{total:,}', f'{trainable:,}',
                          f'{100 * trainable / (self.total or 1):.2f}'))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        return '\n'.join('  '.join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths)))
                         for line in lines)


def count_parameters(model: nn.Module) -> ParameterReport:
    """Count the parameters of ``model`` by component and tuner.

    A parameter that is shared between modules counts once, where it is found
    first.
    """
    rows = defaultdict(lambda: [0, 0])
    owner = {}
    for module in model.modules():
        if isinstance(module, Tuner):
            for parameter in module.parameters():
                owner[id(parameter)] = type(module).__name__
    for name, parameter in model.named_parameters():
        component = name.partition('.')[0]
        row = rows[component, owner.get(id(parameter), 'base')]
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
    rows = [(*key, *counts) for key, counts in rows.items()]
    return ParameterReport(
        total=sum(row[2] for row in rows),
        trainable=sum(row[3] for row in rows),
        rows=rows)
