"""Write docs/evidence/growth/: how a step grows with b, l, image and depth."""
import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from etta_mm.benchmark.cases import CASES, Case
from etta_mm.benchmark.growth import growth
from etta_mm.benchmark.growth_report import write_growth
from etta_mm.comparison.slots import device_name

ROOT = Path(__file__).resolve().parents[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--cases', nargs='+', choices=CASES, default=['detr_r50', 'vit_b16'])
    parser.add_argument(
        '--image-size',
        type=int,
        nargs='+',
        default=[320, 192],
        help='side in pixels where the image does not grow, of each case')
    parser.add_argument('--batch', type=int, default=2, help='images a step')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--steps', type=int, default=3, help='timed steps')
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument(
        '--out',
        default=ROOT / 'docs/evidence/growth',
        type=Path,
        help='folder of README.md, growth.json and the figures')
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='make page and figures of growth.json again')
    args = parser.parse_args(argv)
    if len(args.image_size) != len(args.cases):
        parser.error(f'{len(args.cases)} cases need as many --image-size')
    args.out.mkdir(parents=True, exist_ok=True)
    stored = args.out / 'growth.json'
    if not args.report_only:
        rows = []
        for name, side in zip(args.cases, args.image_size):
            case = Case(name, (side, side), args.batch, args.device)
            for row in growth(case, args.steps, args.warmup):
                rows.append(row)
                print(' '.join(f'{v:g}' if isinstance(v, float) else str(v)
                               for v in row.values()), flush=True)
        settings = dict(
            batch=args.batch,
            image=' and '.join(f'{s} x {s}' for s in args.image_size),
            steps=args.steps,
            device=device_name(args.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__)
        command = shlex.join(['python', 'tools/growth.py', *(
            sys.argv[1:] if argv is None else argv)])
        stored.write_text(
            json.dumps(dict(command=command, settings=settings, rows=rows),
                       indent=1) + '\n')
    found = json.loads(stored.read_text())
    print('written:', write_growth(found['rows'], found['settings'], args.out,
                                   found['command']))


if __name__ == '__main__':
    main()
