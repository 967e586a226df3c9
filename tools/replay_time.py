"""Estimate what all comparisons take here: run a random sample of them again.

Writes docs/evidence/replay_time/ (README.md and replay_time.json).
"""
import argparse
import json
import shlex
import sys
from pathlib import Path

from etta_mm.comparison import find_slots, replay_time, replay_time_page
from etta_mm.engine.user_error import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--jobs', type=int, default=2, help='runs at once')
    parser.add_argument(
        '--fork', action='store_true', help='as in tools/compare.py')
    parser.add_argument(
        '--each',
        type=int,
        default=1,
        help='runs of each plan and role (search, final) that are drawn')
    parser.add_argument(
        '--out', default='docs/evidence/replay_time', help='folder')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        slots = find_slots(args.jobs, args.fork)
    command = shlex.join(
        ['python', 'tools/replay_time.py', *(sys.argv[1:] if argv is None else argv)])
    out = ROOT / args.out
    out.mkdir(parents=True, exist_ok=True)
    for rows in replay_time(ROOT, ROOT / 'work_dirs/replay_time', slots,
                            args.each):
        print(f'{sum(len(row["sampled"]) for row in rows)} runs', flush=True)
    found = dict(rows=rows, jobs=args.jobs, command=command)
    (out / 'replay_time.json').write_text(json.dumps(found, indent=1) + '\n')
    (out / 'README.md').write_text(replay_time_page(**found))
    print(f'written: {out}')


if __name__ == '__main__':
    main()
