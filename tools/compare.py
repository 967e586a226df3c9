"""Run a comparison: methods × seeds from a plan, then a table and figures.

A comparison can be stopped and started again at any time: it goes on where it
was. The format of a plan is described in etta_mm/comparison/plan_file.py.
"""
import argparse
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

from etta_mm.comparison import (BusyError, Comparison, Plan, find_slots,
                                read_plan, read_rows, write_report)
from etta_mm.data.file import check_folder_writable
from etta_mm.engine.user_error import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('plan', help='plan, such as configs/comparison/*.py')
    parser.add_argument(
        '--work-dir',
        help='folder of the runs; by default work_dirs/compare/ and the name '
        'of the plan')
    parser.add_argument(
        '--out',
        help='folder of results.json, table and figures; by default '
        'docs/evidence/ and the name of the plan')
    parser.add_argument(
        '--jobs',
        type=int,
        help='runs at once; by default one per GPU, or 1 without a GPU')
    parser.add_argument(
        '--fork',
        action='store_true',
        help='fork the runs from a process that has the imports done, which '
        'takes seconds and some of the memory off each; on a CPU')
    parser.add_argument(
        '--quick',
        action='store_true',
        help="run what the plan's quick section names, under a name of its "
        'own')
    parser.add_argument(
        '--rates',
        nargs='?',
        const='',
        metavar='FOLDER',
        help='do not search: take the learning rates that the results in this '
        'folder chose, by default those of docs/evidence/ and the name of the '
        'plan; needs another --out')
    parser.add_argument(
        '--dry-run', action='store_true', help='list the runs and stop')
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='write table and figures again from results.json')
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    # So that a terminated comparison ends its runs, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with exit_on_user_error(__file__):
        plan = read_plan(args.plan, ROOT, args.quick)
        out = ROOT / (args.out or f'docs/evidence/{plan.name}')
        if args.rates is not None:
            plan = at_known_rates(plan, args.rates, out)
        plan = replace(plan, arguments=plan_arguments(args))
        if args.report_only:
            path = out / 'results.json'
            if not path.exists():
                raise FileNotFoundError(
                    f'--report-only: {str(path)!r} does not exist; run the '
                    'comparison first, or name its folder with --out')
            print(write_report(plan, read_rows(path), out))
            return 0
        comparison = Comparison(
            plan, ROOT, args.work_dir or f'work_dirs/compare/{plan.name}', out)
        slots = find_slots(args.jobs, args.fork)
        if not args.dry_run:
            check_folder_writable(str(comparison.work_dir), '--work-dir')
            check_folder_writable(str(comparison.out), '--out')
    if args.dry_run:
        print('\n'.join(comparison.outline()))
        return 0
    try:
        return int(comparison.run(slots) > 0)
    except BusyError as error:
        sys.exit(f'compare.py: error: {error}')
    except KeyboardInterrupt:
        return 130


def at_known_rates(plan: Plan, folder: str, out: Path) -> Plan:
    path = ROOT / (folder or f'docs/evidence/{plan.name}') / 'results.json'
    if not path.exists():
        raise FileNotFoundError(
            f'--rates: {str(path)!r} does not exist; name the folder of a '
            'finished comparison, or leave --rates out to search')
    if path.parent.resolve() == out.resolve():
        raise ValueError(
            f'--rates reads {str(path)!r}, which this comparison would write; '
            'give it another folder with --out')
    return plan.with_rates(read_rows(path))


def plan_arguments(args) -> str:
    """What makes the same comparison again."""
    words = ['--quick'] * args.quick
    if args.rates is not None:
        words += ['--rates', *filter(None, [args.rates])]
    for name in ('work_dir', 'out'):
        if getattr(args, name):
            words += [f'--{name.replace("_", "-")}', getattr(args, name)]
    return shlex.join(words).replace(f'{ROOT}/', '')


if __name__ == '__main__':
    sys.exit(main())
