"""Train a model, of detection or of classification, from a config."""
import argparse

from etta_mm.engine.launch import begin_process, build_runner, end_process
from etta_mm.engine.options import add_arguments, training_config
from etta_mm.engine.user_error import (exit_on_refusal,
                                      exit_on_user_error)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint (.pth, or .safetensors of what was '
        'trained), or without a value from the latest of the work dir')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in automatic mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over '
        'auto_scale_lr.base_batch_size of the config')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        cfg = training_config(args)
    with exit_on_refusal(__file__):
        build_runner(cfg).train()


if __name__ == '__main__':
    begin_process()
    main()
    end_process()
