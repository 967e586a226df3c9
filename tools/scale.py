"""Write docs/scale.md: COCO on several devices, from the benchmark's figures."""
import argparse
import json
from pathlib import Path

from etta_mm.benchmark.scale import scale_page
from etta_mm.data.file import check_file
from etta_mm.engine.user_error import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
STORED = 'docs/evidence/benchmark/detr_b2/benchmark.json'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'benchmark',
        nargs='?',
        default=STORED,
        help='benchmark.json of tools/benchmark.py')
    parser.add_argument('--devices', nargs='+', type=int, default=[1, 8, 64])
    parser.add_argument(
        '--gigabits',
        nargs='+',
        type=float,
        default=[25., 400.],
        help='links between the devices, in Gbit/s')
    parser.add_argument('--out', default=ROOT / 'docs/scale.md', type=Path)
    args = parser.parse_args(argv)
    path = Path(args.benchmark)
    path = path if path.is_absolute() else ROOT / path
    with exit_on_user_error(__file__):
        check_file(str(path), 'The benchmark', 'tools/benchmark.py writes it.')
        found = json.loads(path.read_text())
    args.out.write_text(
        scale_page(found['summary'], found['settings'], args.devices,
                   args.gigabits, f'python tools/scale.py {args.benchmark}'))
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
