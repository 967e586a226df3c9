"""Test a model, of detection or of classification, from config and checkpoint.
"""
import argparse

from etta_mm.engine.launch import begin_process, build_runner, end_process
from etta_mm.engine.options import add_arguments, testing_config
from etta_mm.engine.user_error import (exit_on_refusal,
                                      exit_on_user_error)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        'checkpoint', help='.pth, or .safetensors of what was trained')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions, pickled')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir',
        help='draw predictions into this folder; detection: below the folder '
        'of this run in the work dir; classification: pictures of one name in '
        'several folders overwrite each other (tools/demo.py keeps folders)')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='how long a prediction is shown, in seconds')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        cfg = testing_config(args)
    with exit_on_refusal(__file__):
        build_runner(cfg).test()


if __name__ == '__main__':
    begin_process()
    main()
    end_process()
