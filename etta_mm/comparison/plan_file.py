"""A plan, read from a small config file and checked.

A plan is a Python config file of mmengine::

    host = 'ET-ViT'                    # for the heading
    metric = 'accuracy/top1'           # of the validation; more is better
    claims = ['C10']                   # what the comparison is evidence for
    seeds = [0, 1, 2]
    search_seed = 0                    # learning rates are searched with it
    options = {'default_hooks.checkpoint.interval': 5}   # for every run
    methods = [
        dict(name='ETTA', config='configs/glyphs/et_vit_glyphs.py',
             lr=[1e-3, 3e-3, 1e-2], paper='84.5 (5.6 %)'),
        dict(name='LoRA', config='configs/glyphs/et_vit_glyphs.py',
             options={'model.backbone.tuning': dict(
                 _delete_=True, attn=dict(type='LoRA', rank=32))},
             lr=[1e-3, 3e-3, 1e-2])]
    quick = dict(methods=['ETTA'], seeds=[0], epochs=2, search=False)

Optional: ``claims``, ``title``, ``verdict`` (text that the report repeats, with figures
for ``{METHOD}`` and ``{METHOD - OTHER}``),
``search_seed`` (the first of ``seeds``), ``options``, ``epochs``, ``lr_key``
('optim_wrapper.optimizer.lr'), ``quick``, ``custom_imports`` (as in any config
of mmengine, for the models that a plan brings along). Names that begin with an underscore
are the plan's own.

- **methods**: ``name`` and ``config`` (seen from the checkout); optional
  ``options``, ``paper`` (the paper's figure, as text), ``lr`` and ``budgets``.
- **options** are those of ``--cfg-options``: dotted keys, with dicts as values
  where that is shorter. ``_delete_=True`` replaces a dict of the config instead
  of merging into it. The method's go over the plan's, the budget's over both.
- **lr**: a rate, or candidates. Of several, each is trained with the search
  seed; while the best is the lowest or the highest of them, another half a
  power of ten beyond joins in. The one with the best last validation is trained
  with the other seeds and tested; the test images play no part in the choice.
  Without it the rate is the config's.
- **budgets**: dicts with ``options`` and, if they differ, ``lr`` and ``paper``:
  several points of one line in the figure, each searched for itself.
- **epochs**: how long to train; schedules of the config that last as long as
  its training are shortened or lengthened with it.
- **quick**: ``methods`` (names), ``seeds``, ``budgets`` (indices), ``epochs``,
  ``options`` and ``search`` (False takes the middle candidate): the small
  version of the plan that ``--quick`` runs, under the name of the plan and
  '_quick'.
"""
import difflib
from pathlib import Path
from typing import List

from mmengine.config import Config

from .plan import Plan, Point
from .settings import LR_KEY, stack

PLAN_KEYS = ('host', 'metric', 'methods', 'seeds', 'search_seed', 'claims',
             'title', 'verdict', 'options', 'epochs', 'lr_key', 'quick',
             'custom_imports')
METHOD_KEYS = ('name', 'config', 'options', 'lr', 'paper', 'budgets')
BUDGET_KEYS = ('options', 'lr', 'paper')
QUICK_KEYS = ('methods', 'seeds', 'budgets', 'epochs', 'options', 'search')


def read_plan(path, root, quick: bool = False) -> Plan:
    """Read a plan, or the quick version of it.

    Args:
        path (str | Path): The plan.
        root (str | Path): The checkout, from which configs are seen.
        quick (bool): Whether to keep only what its ``quick`` names.

    Raises:
        FileNotFoundError: If the plan, or a config that it names, is missing.
        KeyError: If a key is missing or unknown.
        TypeError: If a value is of the wrong type.
        ValueError: If a value does not fit.
    """
    path, root = Path(path), Path(root).resolve()
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob('*.py'))
        raise FileNotFoundError(
            f'the plan {str(path)!r} does not exist; beside it: '
            f'{", ".join(there) or "nothing"}')
    plan = {
        key: value
        for key, value in Config.fromfile(path).to_dict().items()
        if not key.startswith('_')
    }
    _check_keys('the plan', plan, PLAN_KEYS,
                ('host', 'metric', 'methods', 'seeds'))
    points = []
    for method in _list('methods', plan['methods'], dict):
        _check_keys('a method', method, METHOD_KEYS, ('name', 'config'))
        points += _points(method, plan.get('options', {}), root)
    names = list(dict.fromkeys(point.method for point in points))
    if len(names) < len(plan['methods']):
        raise ValueError(f'two methods have one name: the names are '
                         f'{[m["name"] for m in plan["methods"]]}; give each '
                         'its own')
    seeds, epochs = _list('seeds', plan['seeds'], int), plan.get('epochs')
    search_seed = plan.get('search_seed', seeds[0])
    name = path.stem
    if quick:
        short = plan.get('quick')
        if not isinstance(short, dict):
            raise KeyError('--quick: the plan has no quick=dict(methods=..., '
                           'seeds=..., epochs=...); add it, or leave --quick '
                           'out')
        _check_keys('quick', short, QUICK_KEYS)
        points = _quick_points(points, names, short)
        seeds = _list('quick.seeds', short.get('seeds', seeds), int)
        search_seed = search_seed if search_seed in seeds else seeds[0]
        epochs, name = short.get('epochs', epochs), f'{name}_quick'
    if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
        raise ValueError(f'epochs={epochs!r} must be an integer of at least 1')
    path = path.resolve()
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return Plan(
        name=name,
        path=shown.as_posix(),
        host=plan['host'],
        metric=plan['metric'],
        claims=list(plan.get('claims', [])),
        title=plan.get('title', path.stem),
        verdict=plan.get('verdict', ''),
        seeds=seeds,
        search_seed=search_seed,
        epochs=epochs,
        lr_key=plan.get('lr_key', LR_KEY),
        arguments='--quick' if quick else '',
        points=points)


def _points(method: dict, common: dict, root: Path) -> List[Point]:
    name, config = method['name'], method['config']
    if not (root / config).is_file():
        near = difflib.get_close_matches(
            str(config), [
                p.relative_to(root).as_posix()
                for p in root.glob('configs/**/*.py')
            ])
        raise FileNotFoundError(
            f'the config {config!r} of the method {name!r} does not exist' +
            (f'; near it: {", ".join(near)}' if near else '') +
            '. Give it as seen from the checkout')
    points = []
    for index, budget in enumerate(
            _list(f'budgets of {name!r}', method.get('budgets', [{}]), dict)):
        _check_keys(f'a budget of {name!r}', budget, BUDGET_KEYS)
        rates = budget.get('lr', method.get('lr', []))
        rates = rates if isinstance(rates, (list, tuple)) else [rates]
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, (int, float)):
                raise TypeError(f'lr={rates!r} of {name!r}: a learning rate '
                                f'is a number, not {type(rate).__name__}')
        if len(set(rates)) < len(rates):
            raise ValueError(f'lr={rates!r} of {name!r}: a candidate stands '
                             'twice; take it out')
        points.append(
            Point(
                method=name,
                budget=index,
                config=str(config),
                options=stack(common, method.get('options', {}),
                              budget.get('options', {})),
                rates=tuple(rates),
                paper=budget.get('paper', method.get('paper', ''))))
        if points[-1].options in [point.options for point in points[:-1]]:
            raise ValueError(f'two budgets of {name!r} have the same options; '
                             'take one out')
    return points


def _quick_points(points: List[Point], names: List[str],
                  quick: dict) -> List[Point]:
    kept = _list('quick.methods', quick.get('methods', names), str)
    for name in kept:
        if name not in names:
            raise ValueError(f'quick.methods names {name!r}; the methods are '
                             f'{", ".join(names)}')
    budgets = quick.get('budgets')
    short = []
    for point in points:
        if point.method not in kept or (budgets is not None
                                        and point.budget not in budgets):
            continue
        rates = point.rates
        if rates and not quick.get('search', True):
            rates = (sorted(rates)[len(rates) // 2], )
        short.append(
            Point(point.method, point.budget, point.config,
                  stack(point.options, quick.get('options', {})), rates,
                  point.paper))
    if not short:
        raise ValueError(f'quick.budgets={budgets!r} leaves no run; give '
                         'indices into the budgets of the methods')
    return short


def _check_keys(what: str, given: dict, allowed, required=()) -> None:
    unknown = sorted(set(given) - set(allowed))
    absent = [key for key in required if key not in given]
    if unknown or absent:
        raise KeyError(f'{what} ' +
                       (f'has no key {", ".join(unknown)}' if unknown else
                        f'needs {", ".join(absent)}') +
                       f'; its keys are {", ".join(allowed)}')


def _list(name: str, value, of: type) -> list:
    if not isinstance(value, (list, tuple)) or not value or not all(
            isinstance(item, of) for item in value):
        raise TypeError(f'{name}={value!r} must be a list of {of.__name__}, '
                        'with at least one in it')
    return list(value)
