"""Names in a message, of which there may be too many to write out."""
from typing import Sequence


def listing(names: Sequence, most: int = 3, separator: str = ', ') -> str:
    """The first names and how many more there are: ``a, b, c and 4 more``.

    Args:
        names (Sequence): Names, or what is written like one.
        most (int): How many are written out. Defaults to 3.
        separator (str): What stands between two. Defaults to ', '.
    """
    more = len(names) - most
    return separator.join(map(str, names[:most])) + (
        f' and {more} more' if more > 0 else '')
