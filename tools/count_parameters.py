"""Count what a config trains: per component and tuner, and as percentages.

With --percent, also the bottleneck of the parallel adapters that meets it. The
model is built without its numbers, so this needs no memory, weights or data.
"""
import argparse
import json
import os.path as osp

from mmengine.config import Config, DictAction

from etta_mm import count_parameters
from etta_mm.data.file import check_config, check_folder_writable
from etta_mm.engine import Budget, build_on_meta
from etta_mm.engine.budget import WHOLES
from etta_mm.engine.config import merge_options
from etta_mm.engine.user_error import exit_on_user_error


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--percent',
        type=float,
        metavar='P',
        help='find the largest bottleneck that trains at most P percent')
    parser.add_argument(
        '--num-prefix',
        type=int,
        metavar='L',
        help='length of the prefixes beside it; 0 is without')
    parser.add_argument(
        '--of',
        choices=WHOLES,
        default='total',
        help='whether P is of base + added or of the base alone (default: '
        '%(default)s)')
    parser.add_argument(
        '--out', metavar='FILE.json', help='save the report as JSON')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value')
    args = parser.parse_args(argv)
    if (args.percent is None) != (args.num_prefix is None):
        parser.error('--percent and --num-prefix go together')
    if args.out is not None and not args.out.endswith('.json'):
        parser.error(f'--out {args.out!r} must end with .json')
    return args


def count(args) -> dict:
    """Print the report, and return it as JSON holds it."""
    check_config(args.config)
    if args.out is not None:
        check_folder_writable(
            osp.dirname(args.out) or '.', 'The folder of --out')
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options)
    model = build_on_meta(cfg)
    report = count_parameters(model)
    result = dict(config=args.config, **report.to_dict())
    print(f'{report}\n\n'
          f'base     {report.base:>13,}\n'
          f'added    {report.added:>13,}\n'
          f'trained  {report.trainable:>13,}   '
          f'{report.percent:.2f} % of base + added, '
          f'{report.percent_of_base:.2f} % of the base alone')
    if args.percent is not None:
        budget = Budget.of(model)
        b = budget.bottleneck(args.percent, args.num_prefix, args.of)
        sizes = (b, args.num_prefix)
        result['budget'] = dict(
            asked=args.percent,
            of=args.of,
            num_prefix=args.num_prefix,
            bottleneck_dims=b,
            trained=budget.trained(*sizes),
            percent=budget.percent(*sizes),
            percent_of_base=budget.percent(*sizes, of='base'))
        print(f'\n{args.percent} % of {WHOLES[args.of]} with num_prefix='
              f'{args.num_prefix}: bottleneck_dims={b}\n'
              f'trained  {budget.trained(*sizes):>13,}   '
              f'{budget.percent(*sizes):.2f} % of base + added, '
              f'{budget.percent(*sizes, of="base"):.2f} % of the base alone')
    return result


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        result = count(args)
    if args.out is not None:
        with open(args.out, 'w') as file:
            json.dump(result, file, indent=2)
            file.write('\n')
        print(f'\nsaved as {args.out}')


if __name__ == '__main__':
    main()
