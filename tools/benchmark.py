"""Time and memory of fine-tuning: ETTA, its rivals, its peers and the floor.

Every method runs in a process of its own; the rounds go through the methods
forwards and backwards in turn, so that a machine that grows slower treats all
alike. With --together one process times them step by step in turn. Weights are
random, nothing is downloaded.
"""
import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# Otherwise the question for a GPU starts CUDA, which no fork survives.
os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')
import torch  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402

from etta_mm.benchmark import peers  # noqa: E402
from etta_mm.benchmark.cases import CASES, Case  # noqa: E402
from etta_mm.benchmark.measure import (Rival,  # noqa: E402
                                       compile_parts, measure,
                                       time_in_turn)
from etta_mm.benchmark.methods import METHODS, methods_of  # noqa: E402
from etta_mm.benchmark.report import write_report  # noqa: E402
from etta_mm.comparison.slots import device_name  # noqa: E402

#: The method whose packages are not among those of etta_mm.
PEER = 'hf_peft_lora'
#: Stands for all methods, in a process that times them in turn.
TOGETHER = 'together'


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
    parser.add_argument(
        '--fork',
        action='store_true',
        help='fork the processes with all imports done, which takes seconds '
        'off each; the time to start is not measured then')
    parser.add_argument(
        '--together',
        action='store_true',
        help='time the methods of a case in one process that holds all of '
        'them, step by step in turn: for a machine whose speed changes within '
        'minutes')
    # What a process that measures is told.
    parser.add_argument('--worker', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.image_size and len(args.image_size) > 2:
        parser.error('--image-size takes one number or two')
    return args


def make_case(args, name: str) -> Case:
    size = tuple(args.image_size * 2)[:2] if args.image_size else None
    return Case(name, size, args.batch, args.device)


def work(args, case: str, method: str, path: Path, started=None) -> None:
    case = make_case(args, case)
    if method == TOGETHER:
        result = measure_together(args, case)
    else:
        steps = (0, 0) if args.together else (args.steps, args.warmup)
        result = measure(case, method, *steps, args.dtype, args.compile,
                         started)
    path.write_text(json.dumps(result))


def measure_together(args, case: Case) -> dict:
    """The times of all methods, by method."""
    rivals = {}
    for method in chosen_methods(args, case):
        contestant = METHODS[method](case)
        if args.compile:
            compile_parts(contestant.model)
        rivals[method] = Rival(contestant, case.device, args.dtype)
    return time_in_turn(rivals, args.steps, args.warmup)


def chosen_methods(args, case: Case) -> list:
    existing = methods_of(case)
    return [m for m in args.methods or existing if m in existing]


def fork(args, case: str, method: str, path: Path) -> str:
    """Measure in a copy of this process; what went wrong there is returned."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def target() -> None:
        try:
            work(args, case, method, path)
        except Exception as error:
            sender.send(f'{type(error).__name__}: {error}')

    process = multiprocessing.get_context('fork').Process(target=target)
    process.start()
    process.join()
    return receiver.recv() if receiver.poll() else f'rc {process.exitcode}'


def spawn(args, case: str, method: str, path: Path) -> str:
    """The same in a new process."""
    chosen = ['--methods', *args.methods] if args.methods else []
    command = [sys.executable, *sys.argv, *chosen, '--worker', case, method,
               str(path), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'rc {done.returncode}'


def run_apart(args, case: str, method: str, path: Path) -> dict:
    """Measure in a process of its own; what goes wrong there becomes a row."""
    path.unlink(missing_ok=True)
    error = (fork if args.fork else spawn)(args, case, method, path)
    if not path.exists():
        return dict(case=case, method=method, error=error[:200])
    return json.loads(path.read_text())


def main():
    args = parse_args()
    # Every model would tell how each of its parameters begins.
    MMLogger.get_current_instance().setLevel('WARNING')
    if args.worker:
        case, method, path, started = args.worker
        work(args, case, method, Path(path), float(started))
        return
    if args.fork and PEER in (args.methods or METHODS):
        with suppress(ImportError):  # then its row says what is not there
            peers.preload()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    runs, described = [], settings(args)
    for name in args.cases:
        methods = chosen_methods(args, make_case(args, name))
        for number in range(args.rounds):
            for method in methods[::-1 if number % 2 else 1]:
                begin = time.perf_counter()
                run = run_apart(args, name, method, folder / '.run.json')
                runs.append(dict(run, round=number))
                print(f'{name} {method} round {number}: ' +
                      run.get('error', 'done') +
                      f' ({time.perf_counter() - begin:.0f} s)', flush=True)
            if args.together:
                add_times(args, runs[-len(methods):], folder / '.run.json')
        report = write_report(by_method(runs), described, folder)
    (folder / '.run.json').unlink(missing_ok=True)
    print(report.read_text())
    print(f'written: {report}')


def add_times(args, runs: list, path: Path) -> None:
    """Time together the methods of a case that have run by themselves."""
    able = [run for run in runs if 'error' not in run]
    if not able:
        return
    chosen = argparse.Namespace(**vars(args))
    chosen.methods = [run['method'] for run in able]
    times = run_apart(chosen, able[0]['case'], TOGETHER, path)
    for run in able:
        run.update(times.get(run['method'], dict(error=times.get('error'))))


def by_method(runs: list) -> list:
    return sorted(runs, key=lambda run: list(METHODS).index(run['method']))


def settings(args) -> dict:
    return dict(
        batch=args.batch,
        image_size=args.image_size or 'default',
        dtype=args.dtype,
        compile=args.compile,
        steps=args.steps,
        rounds=args.rounds,
        together=args.together,
        device=device_name(args.device),
        tf32=dict(
            convolutions=torch.backends.cudnn.allow_tf32,
            products=torch.backends.cuda.matmul.allow_tf32),
        threads=torch.get_num_threads(),
        torch=torch.__version__)


if __name__ == '__main__':
    main()
