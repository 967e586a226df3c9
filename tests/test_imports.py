"""Rooms: imports run one way, and no drawer is called 'utils'."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'etta_mm'
#: What a room may import from the package. No room before it imports it, so
#: imports run one way.
ALLOWED = dict(
    tuners={'tuners'},
    layers={'tuners', 'layers'},
    models={'tuners', 'layers', 'models'},
    data={'data'},
    checkpoints={'tuners', 'layers', 'data', 'checkpoints', 'version'},
    features={'tuners', 'checkpoints', 'features'},
    # options.py checks the data set before a training starts.
    engine={'tuners', 'layers', 'data', 'checkpoints', 'engine'},
    inference={'tuners', 'layers', 'checkpoints', 'engine', 'inference'},
    comparison={
        'layers', 'models', 'checkpoints', 'engine', 'markdown', 'comparison'
    },
)
#: What every room may import besides: it imports nothing of the package.
BELOW = {'listing'}
#: What tuners may import besides: torch, the registry, the standard library.
OUTSIDE_OF_TUNERS = {'torch', 'mmengine'}
DRAWERS = ('utils.py', 'misc.py', 'common.py', 'helpers.py')


def imports(path: Path):
    """Absolute names of the modules that the file imports, anywhere in it."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1]
            name = '.'.join((*base, node.module or '')) if node.level else (
                node.module)
            if name.strip('.') == 'etta_mm':  # from etta_mm import layers
                yield from (f'etta_mm.{alias.name}' for alias in node.names)
            else:
                yield name.strip('.')


@pytest.mark.parametrize('room', ALLOWED)
def test_a_room_imports_only_what_lies_before_it(room):
    files = sorted((PACKAGE / room).rglob('*.py'))
    assert files
    for path in files:
        for name in imports(path):
            parts = name.split('.')
            if parts[0] == 'etta_mm':
                assert parts[1] in ALLOWED[room] | BELOW, (
                    f'{path} imports {name}')


def test_what_every_room_may_import_imports_no_room():
    for file in BELOW:
        names = imports(PACKAGE / f'{file}.py')
        assert not any(name.startswith('etta_mm') for name in names)


def test_tuners_need_torch_and_the_registry_only():
    import sys
    for path in sorted((PACKAGE / 'tuners').rglob('*.py')):
        for name in imports(path):
            first = name.split('.')[0]
            assert (first in OUTSIDE_OF_TUNERS | {'etta_mm'}
                    or first in sys.stdlib_module_names), (
                        f'{path} imports {name}')


def test_every_room_is_known():
    rooms = {p.parent.name for p in PACKAGE.glob('*/__init__.py')}
    assert rooms - set(ALLOWED) <= {'benchmark', 'visualization'}


def test_no_file_is_a_drawer():
    drawers = [p for p in PACKAGE.rglob('*.py') if p.name in DRAWERS]
    assert not drawers
