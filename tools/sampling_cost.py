"""Time deformable attention's sampling on a CPU: mmcv's and etta_mm.fast_cpu's.

The sizes are those of a Deformable DETR's encoder (a query for each key) and
decoder (300 queries) with one image. Rounds alternate; figures are medians.
"""
import argparse
import statistics
import time

import torch
from mmcv.ops.multi_scale_deform_attn import \
    multi_scale_deformable_attn_pytorch as mmcvs

from etta_mm.layers.sampling import sample

HEADS, DIMS, LEVELS, POINTS = 8, 32, 4, 4
SPREAD = 0.03  # of the points around their reference, in parts of the image


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--image-size', type=int, nargs=2, default=(480, 640),
        metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, help="by default torch's own")
    return parser.parse_args()


def inputs(height: int, width: int, num_queries: int = None):
    shapes = torch.tensor([[-(-height // s), -(-width // s)]
                           for s in (8, 16, 32, 64)])
    keys = int(shapes.prod(1).sum())
    queries = num_queries or keys
    torch.manual_seed(0)
    value = torch.randn(1, keys, HEADS, DIMS)
    locations = torch.rand(1, queries, 1, 1, 1, 2) + SPREAD * torch.randn(
        1, queries, HEADS, LEVELS, POINTS, 2)
    attention = torch.rand(1, queries, HEADS, LEVELS, POINTS)
    leaves = [x.requires_grad_() for x in (value, locations, attention)]
    return leaves, (leaves[0], shapes, *leaves[1:])


def measure(function, leaves, args):
    """Seconds of the forward and of the backward pass."""
    start = time.perf_counter()
    out = function(*args)
    middle = time.perf_counter()
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    return middle - start, time.perf_counter() - middle


def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f'{args.image_size[0]}x{args.image_size[1]}, 1 image, '
          f'{torch.get_num_threads()} threads, medians of {args.rounds}, ms')
    print('| | forward: mmcv | ours | backward: mmcv | ours | both: ratio |')
    print('|---|---:|---:|---:|---:|---:|')
    for name, num_queries in (('encoder', None), ('decoder', 300)):
        case = inputs(*args.image_size, num_queries)
        times = {mmcvs: [], sample: []}
        for round_ in range(args.rounds + 1):
            for function in times:
                seconds = measure(function, *case)
                if round_:  # the first warms up
                    times[function].append(seconds)
        (f0, b0), (f1, b1) = ([1e3 * statistics.median(part)
                               for part in zip(*times[function])]
                              for function in times)
        print(f'| {name} | {f0:.1f} | {f1:.1f} | {b0:.1f} | {b1:.1f} | '
              f'{(f0 + b0) / (f1 + b1):.2f} |', flush=True)


if __name__ == '__main__':
    main()
