"""Print what a step costs with and without the feature cache, per image."""
import argparse

from mmengine.config import Config, DictAction

from etta_mm.benchmark.cached_step import cached_step
from etta_mm.data.file import check_config
from etta_mm.engine.config import merge_options
from etta_mm.engine.user_error import exit_on_user_error


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a detector')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=(800, 1333),
        metavar=('H', 'W'),
        help='of the padded image in pixels; default: 800 1333')
    parser.add_argument(
        '--device',
        choices=['meta', 'cpu'],
        default='meta',
        help='meta computes nothing; deformable attention needs cpu')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='KEY=VALUE ...')
    args = parser.parse_args(argv)
    with exit_on_user_error(__file__):
        check_config(args.config)
        cfg = Config.fromfile(args.config)
        merge_options(cfg, args.cfg_options)
        step = cached_step(cfg, tuple(args.size), args.device)
    share = step.with_cache / step.without_cache
    print(f'operations without cache  {step.without_cache / 1e9:10.3f} G')
    print(f'operations with cache     {step.with_cache / 1e9:10.3f} G '
          f'({100 * share:.1f} %)')
    for name, size in step.bytes_on_disk.items():
        print(f'bytes on disk, {name:8}   {size:10,}')


if __name__ == '__main__':
    main()
