"""Predict an image, a folder of images or a video, and draw what was found.

OUT_DIR/vis/ gets the pictures, OUT_DIR/preds/ the predictions as JSON.
"""
import argparse

from mmengine.config import Config

from etta_mm.checkpoints.base_weights import allow_pickle
from etta_mm.checkpoints.tuned_weights import tuned_weights
from etta_mm.data.file import check_config, check_file, check_folder_writable
from etta_mm.engine.check_model import check_full
from etta_mm.engine.user_error import exit_on_user_error
from etta_mm.inference.predictor import build_predictor, predict_files


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='image, folder of images, or video')
    parser.add_argument('config', help='config of the training')
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument('--tuned', help='tuned checkpoint, on top of the base')
    weights.add_argument('--checkpoint', help='full checkpoint')
    parser.add_argument(
        '--base',
        help='base of the tuned checkpoint; by default load_from of the config')
    parser.add_argument('--out-dir', default='outputs')
    parser.add_argument(
        '--device', help='cpu, cuda or cuda:NUMBER; by default a GPU, if any')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument(
        '--pred-score-thr',
        type=float,
        help='score from which on a prediction is drawn; by default 0.3 for '
        'detection, 0 for classification')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='load checkpoints that run what is in them')
    return parser.parse_args(argv)


def run(args) -> None:
    check_file(args.source, 'The image, folder or video',
               'Give one that exists.')
    check_config(args.config, 'SOURCE CONFIG')
    cfg = Config.fromfile(args.config)
    allow_pickle(args.allow_pickle or cfg.get('allow_pickle', False))
    if args.tuned is not None:
        weights = tuned_weights(args.config, args.tuned, args.base)
    else:
        check_file(args.checkpoint, 'The checkpoint', 'Give one that exists.')
        check_full(cfg, args.checkpoint)
        weights = args.checkpoint
    check_folder_writable(args.out_dir, 'The folder of --out-dir')
    number, unreadable = predict_files(
        build_predictor(args.config, weights, args.device), args.source,
        args.out_dir, args.batch_size, args.pred_score_thr)
    for path in unreadable:
        print('passed over, since it holds no image, or none that the '
              f'pipeline can prepare: {path}')
    print(f'{number} predicted, in {args.out_dir}')


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        run(args)


if __name__ == '__main__':
    main()
