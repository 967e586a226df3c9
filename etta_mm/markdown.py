"""Markdown, as the pages of measurements are written in."""
from typing import List, Sequence

RULES = dict(l='---', r='---:')


def table(header: Sequence, rows: Sequence[Sequence],
          align: str = 'l') -> List[str]:
    """The lines of a table.

    Args:
        header (Sequence): A cell for each column.
        rows (Sequence[Sequence]): The cells of each row; a ``|`` in one of
            them becomes a ``/``.
        align (str): 'l' or 'r' for each column; the last one counts for all
            that follow. Defaults to 'l'.
    """
    rule = [RULES[side] for side in align.ljust(len(header), align[-1])]
    return [
        '| ' + ' | '.join(str(cell).replace('|', '/') for cell in line) + ' |'
        for line in (header, rule, *rows)
    ]
