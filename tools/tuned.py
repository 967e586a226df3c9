"""Look into tuned checkpoints, make them and unmake them.

inspect  what a tuned checkpoint says of itself
extract  full checkpoint -> tuned checkpoint
apply    base + tuned checkpoint -> full checkpoint
diff     how two tuned checkpoints differ; exits with 1 if they do
merge    as apply, with every LoRA folded into the base weights
"""
import argparse
import sys

from mmengine.config import Config

from etta_mm.checkpoints.base_weights import allow_pickle
from etta_mm.checkpoints.convert import (apply, description, differences,
                                         extract, merge)
from etta_mm.data.file import check_config
from etta_mm.engine.user_error import exit_on_user_error
from etta_mm.listing import listing


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('inspect')
    command.add_argument('tuned', help='tuned checkpoint')
    command = commands.add_parser('diff')
    command.add_argument('tuned', nargs=2, help='tuned checkpoints')
    for name in ('extract', 'apply', 'merge'):
        command = commands.add_parser(name)
        command.add_argument('config', help='config of the training')
        command.add_argument(
            'checkpoint',
            help='full checkpoint' if name == 'extract' else 'tuned checkpoint')
        command.add_argument('out', help='file to write')
        command.add_argument(
            '--allow-pickle',
            action='store_true',
            help='load checkpoints that run what is in them')
        if name != 'extract':
            command.add_argument(
                '--base', help='checkpoint of the base; by default load_from '
                'of the config')
    return parser.parse_args(argv)


def run(args) -> int:
    if args.command == 'inspect':
        print('\n'.join(description(args.tuned)))
        return 0
    if args.command == 'diff':
        lines = differences(*args.tuned)
        print('\n'.join(lines or ['no difference']))
        return int(bool(lines))
    allow_pickle(args.allow_pickle)
    check_config(args.config, f'{args.command} CONFIG CHECKPOINT OUT')
    cfg = Config.fromfile(args.config)
    if args.command == 'extract':
        extract(cfg, args.checkpoint, args.out)
    elif args.command == 'apply':
        apply(cfg, args.checkpoint, args.out, args.base)
    else:
        folded, left = merge(cfg, args.checkpoint, args.out, args.base)
        print(f'folded: {len(folded)} LoRA')
        for kind, names in left.items():
            print(f'cannot be folded, and still in the file: {len(names)} '
                  f'{kind} ({listing(names)}). Load it with this tuning '
                  'without LoRA.')
    print(args.out)
    return 0


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        sys.exit(run(args))


if __name__ == '__main__':
    main()
