"""One batch whose images go through different tunings: the split by tuning.

Which axis of a tensor counts the images is known from ``batch_first`` and from
the types of the heads; where it is not, routing refuses. What is routed is
in :mod:`.routed`.
"""
from contextlib import contextmanager
from typing import Any, Callable, Dict, Hashable, List, Optional, Sequence

import torch
from torch import Tensor

_OUTSIDE = object()


class Routing:
    """Which image of a batch goes through which tuning.

    Args:
        names (Sequence): The tuning of each image; None is the base.
        batch_first (bool, optional): Whether tensors of shape (a, b, d) in
            the transformer count the images by a or by b. None: by whichever
            fits.
    """

    def __init__(self,
                 names: Sequence[Hashable],
                 batch_first: Optional[bool] = True) -> None:
        self.names = tuple(names)
        self.batch_first = batch_first
        self.rows: Dict[Hashable, List[int]] = {}
        for row, name in enumerate(self.names):
            self.rows.setdefault(name, []).append(row)
        order = [row for rows in self.rows.values() for row in rows]
        self._back = sorted(range(len(order)), key=order.__getitem__)
        self._indices = {}  # on each device once
        self._inside = _OUTSIDE

    @property
    def is_inside(self) -> bool:
        """Whether only images of one tuning are on their way now."""
        return self._inside is not _OUTSIDE

    @property
    def inside(self) -> Hashable:
        """The tuning of the images that are on their way now."""
        return self._inside

    def batch_dim(self,
                  x: Tensor,
                  where: str,
                  batch_first: Optional[bool] = None) -> int:
        """The dimension of ``x`` that counts the images.

        Args:
            x (Tensor): (bs, c, h, w), or (bs, n, d) or (n, bs, d).
            where (str): What to call its place in an error.
            batch_first (bool, optional): The layout if it is known there.

        Raises:
            ValueError: If there is none, or it is not certain which it is.
        """
        bs = len(self.names)
        if batch_first is None:
            batch_first = self.batch_first
        if x.dim() > 3:
            dims = [0]
        elif x.dim() < 3:
            dims = []  # its rows may be queries
        elif batch_first is None:
            dims = [0, 1]
        else:
            dims = [0 if batch_first else 1]
        found = [dim for dim in dims if x.size(dim) == bs]
        if len(found) != 1:
            raise ValueError(
                f'{where} sees a tensor of shape {tuple(x.shape)}, in which '
                f'{"no dimension is" if not found else "several may be"} the '
                f'batch of the {bs} images that per_sample was given a tuning '
                'for. Give one name for each image; a layer that windows or '
                'flattens its batch cannot be routed: run each tuning by '
                'itself (use)')
        return found[0]

    def split(self, call: Callable, inputs: tuple, take: Callable,
              merge: Callable, where: str):
        """Call ``call`` with the images of each tuning; merge what it gives.

        Args:
            call (Callable): Takes what ``inputs`` become.
            inputs (tuple): Anything that holds tensors.
            take (Callable): From a tensor of the inputs to its batch
                dimension.
            merge (Callable, optional): Likewise for what ``call`` gives.
                None: only lists with an item for each image are known there.
            where (str): What to call its place in an error.
        """
        parts = []
        for name, rows in self.rows.items():
            with self._only(name):
                parts.append(
                    call(*(self._take(x, rows, name, take, where)
                           for x in inputs)))
        return self._merge(parts, merge, where)

    @contextmanager
    def _only(self, name: Hashable):
        self._inside = name
        try:
            yield
        finally:
            self._inside = _OUTSIDE

    def _index(self, key: Hashable, rows: List[int],
               device: torch.device) -> Tensor:
        if (key, device) not in self._indices:
            self._indices[key, device] = torch.tensor(rows, device=device)
        return self._indices[key, device]

    def _take(self, value: Any, rows: List[int], name: Hashable,
              batch_dim: Callable, where: str):
        if isinstance(value, Tensor):
            dim = batch_dim(value)
            self._check_size(value, dim, len(self.names), where)
            return value.index_select(
                dim, self._index((name, ), rows, value.device))
        if _holds_tensors(value):
            return _rebuilt(
                value,
                lambda x: self._take(x, rows, name, batch_dim, where))
        if isinstance(value, (list, tuple)) and value:
            if len(value) != len(self.names):
                raise ValueError(
                    f'{where} is given a list of {len(value)} items, and '
                    f'per_sample a tuning for {len(self.names)} images; give '
                    'one name for each image')
            return [value[row] for row in rows]
        return value

    def _merge(self, parts: list, batch_dim: Optional[Callable], where: str):
        first = parts[0]
        if isinstance(first, Tensor):
            if batch_dim is None:
                raise ValueError(
                    f'{where} gives tensors, and which of their dimensions is '
                    "the batch is not known; call the model with mode='predict'"
                    ', or run each tuning by itself (use)')
            dim = batch_dim(first)
            shapes = {}
            for part, (name, rows) in zip(parts, self.rows.items()):
                self._check_size(part, dim, len(rows), where)
                shapes[name] = (*part.shape[:dim], *part.shape[dim + 1:])
            if len(set(shapes.values())) > 1:
                raise ValueError(
                    f'{where} gives tensors that make no one batch, of shapes '
                    f'(without the batch) {shapes}. Heads with different '
                    "classes need mode='predict'; where that does not help, "
                    'run each tuning by itself (use)')
            index = self._index('back', self._back, first.device)
            return torch.cat(parts, dim).index_select(dim, index)
        if _holds_tensors(first):
            if isinstance(first, dict):
                return {
                    key: self._merge([p[key] for p in parts], batch_dim, where)
                    for key in first
                }
            return type(first)(
                self._merge(list(items), batch_dim, where)
                for items in zip(*parts))
        if isinstance(first, (list, tuple)) and all(
                len(part) == len(rows)
                for part, rows in zip(parts, self.rows.values())):
            items = [item for part in parts for item in part]
            return [items[row] for row in self._back]
        if first is None:
            return None
        raise ValueError(
            f'{where} gives {type(first).__name__}, which cannot be put '
            'together from several tunings; run each by itself (use)')

    def _check_size(self, x: Tensor, dim: int, size: int, where: str) -> None:
        if x.dim() <= dim or x.size(dim) != size:
            raise ValueError(
                f'{where} has a tensor of shape {tuple(x.shape)}, whose '
                f'dimension {dim} should count {size} of the '
                f'{len(self.names)} images that per_sample was given a tuning '
                'for; give one name for each image, or run each tuning by '
                'itself (use)')


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(
        isinstance(x, Tensor) or _holds_tensors(x) for x in value)


def _rebuilt(value, function: Callable):
    if isinstance(value, dict):
        return {key: function(x) for key, x in value.items()}
    return type(value)(function(x) for x in value)
