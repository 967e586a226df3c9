"""Time and memory of fine-tuning: ETTA, its rivals, its peers and the floor.

Every method runs in a process of its own; the rounds go through the methods
forwards and backwards in turn, so that a machine that grows slower treats all
alike. Weights are random, nothing is downloaded.
"""
import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from etta_mm.benchmark.cases import CASES, Case
from etta_mm.benchmark.measure import measure
from etta_mm.benchmark.methods import METHODS, methods_of
from etta_mm.benchmark.report import write_report


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--cases', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument(
        '--methods', nargs='+', choices=METHODS, help='defaults to all')
    parser.add_argument(
        '--image-size',
        nargs='+',
        type=int,
        help='height and width in pixels, or the side of a square; defaults '
        'to 800 1216 for detection and 224 for classification')
    parser.add_argument('--batch', type=int, default=2, help='images a step')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='other than float32: by autocast')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument(
        '--steps', type=int, default=10, help='timed steps of a round')
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--out', default='work_dirs/benchmark')
    # What a process that measures is told.
    parser.add_argument('--worker', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.image_size and len(args.image_size) > 2:
        parser.error('--image-size takes one number or two')
    return args


def make_case(args, name: str) -> Case:
    size = tuple(args.image_size * 2)[:2] if args.image_size else None
    return Case(name, size, args.batch, args.device)


def run_apart(args, case: str, method: str, path: Path) -> dict:
    """Measure in a new process; what goes wrong there becomes a row."""
    path.unlink(missing_ok=True)
    command = [sys.executable, *sys.argv, '--worker', case, method,
               str(path), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not path.exists():
        lines = done.stderr.strip().splitlines() or [f'rc {done.returncode}']
        return dict(case=case, method=method, error=lines[-1][:200])
    return json.loads(path.read_text())


def main():
    args = parse_args()
    if args.worker:
        case, method, path, started = args.worker
        result = measure(
            make_case(args, case), method, args.steps, args.warmup, args.dtype,
            args.compile, float(started))
        Path(path).write_text(json.dumps(result))
        return
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for name in args.cases:
        existing = methods_of(make_case(args, name))
        methods = [m for m in args.methods or existing if m in existing]
        for number in range(args.rounds):
            for method in methods[::-1 if number % 2 else 1]:
                begin = time.perf_counter()
                run = run_apart(args, name, method, folder / '.run.json')
                runs.append(dict(run, round=number))
                print(f'{name} {method} round {number}: ' +
                      run.get('error', 'done') +
                      f' ({time.perf_counter() - begin:.0f} s)', flush=True)
    settings = dict(
        batch=args.batch,
        image_size=args.image_size or 'default',
        dtype=args.dtype,
        compile=args.compile,
        steps=args.steps,
        rounds=args.rounds,
        device=torch.cuda.get_device_name()
        if args.device.startswith('cuda') else platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__)
    runs.sort(key=lambda run: list(METHODS).index(run['method']))
    report = write_report(runs, settings, folder)
    (folder / '.run.json').unlink(missing_ok=True)
    print(report.read_text())
    print(f'written: {report}')


if __name__ == '__main__':
    main()
