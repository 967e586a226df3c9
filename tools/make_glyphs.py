"""Write Glyphs, the embedded benchmark, to disk."""
import argparse
import time

from etta_mm.data.glyphs import (DEFAULT_SIZES, DOMAINS, IMAGE_SIZES, SPLITS,
                                 TASKS, make_glyphs)
from etta_mm.engine.user_error import exit_on_user_error


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/glyphs', help='folder to write')
    parser.add_argument('--tasks', nargs='+', default=TASKS, choices=TASKS)
    parser.add_argument(
        '--domains', nargs='+', default=DOMAINS, choices=DOMAINS)
    parser.add_argument('--splits', nargs='+', default=SPLITS, choices=SPLITS)
    parser.add_argument(
        '--num-images',
        type=int,
        help='images of every split written; without it, the default set: ' +
        '; '.join(f'{task} {domain} ' + ' '.join(
            f'{split}={size}' for split, size in zip(SPLITS, sizes))
                  for (task, domain), sizes in DEFAULT_SIZES.items()))
    parser.add_argument(
        '--image-size',
        type=int,
        help='side in pixels; by default ' +
        ', '.join(f'{task} {side}' for task, side in IMAGE_SIZES.items()))
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_args()
    with exit_on_user_error(__file__):
        write(args)


def write(args):
    start = time.perf_counter()
    for task in args.tasks:
        for domain in args.domains:
            for split in args.splits:
                num_images = args.num_images
                if num_images is None:
                    num_images = DEFAULT_SIZES[task,
                                               domain][SPLITS.index(split)]
                folder = make_glyphs(args.out, task, domain, split, num_images,
                                     args.seed, args.image_size)
                print(f'{num_images:6d} images in {folder}', flush=True)
    print(f'written in {time.perf_counter() - start:.1f} s')


if __name__ == '__main__':
    main()
