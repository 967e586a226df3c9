"""Names in a message."""
from etta_mm.listing import listing


def test_the_first_are_named_and_the_others_counted():
    assert listing('abcdefg') == 'a, b, c and 4 more'
    assert listing([1, 2], most=1) == '1 and 1 more'
    assert listing(['a 1', 'b, 2'], separator='; ') == 'a 1; b, 2'


def test_as_many_as_are_written_out_are_all():
    assert listing(('a', 'b', 'c')) == 'a, b, c'
    assert listing([]) == ''
