"""Export a model to ONNX: normalised images in, class scores or boxes out."""
import argparse
from importlib.util import find_spec

from mmengine.config import Config

from etta_mm.checkpoints.base_weights import allow_pickle
from etta_mm.checkpoints.convert import build_tuned_model
from etta_mm.data.file import check_config, check_file
from etta_mm.engine.user_error import exit_on_user_error
from etta_mm.inference.export import (export_onnx, export_program,
                                      image_size_of, onnx_difference)
from etta_mm.inference.exportable import exportable

#: Of the outputs, between onnxruntime and PyTorch.
TOLERANCE = 1e-4
BATCH_SIZES = (1, 3)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the training')
    parser.add_argument('--tuned', required=True, help='tuned checkpoint')
    parser.add_argument('--out', required=True, help='file to write, *.onnx')
    parser.add_argument(
        '--base',
        help='base of the tuned checkpoint; by default load_from of the config')
    parser.add_argument(
        '--image-size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='in pixels; by default that of the config, if it has one')
    parser.add_argument(
        '--masks',
        action='store_true',
        help='detectors: a second input, True where an image is padded')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='load checkpoints that run what is in them')
    return parser.parse_args(argv)


def run(args) -> None:
    check_config(args.config, 'CONFIG --tuned TUNED --out OUT')
    check_file(args.tuned, 'The tuned checkpoint', 'Give one that exists.')
    if find_spec('onnxscript') is None or find_spec('onnx') is None:
        raise ValueError('the export needs onnx and onnxscript: pip install '
                         'onnx onnxscript onnxruntime')
    allow_pickle(args.allow_pickle)
    if args.image_size and min(args.image_size) < 1:
        raise ValueError(f'--image-size {args.image_size[0]} '
                         f'{args.image_size[1]}: height and width in pixels '
                         'must be at least 1')
    cfg = Config.fromfile(args.config)
    size = tuple(args.image_size or image_size_of(cfg))
    module = exportable(build_tuned_model(cfg, args.tuned, args.base)[0])
    export_onnx(export_program(module, size, args.masks), args.out)
    print(f'{args.out}: any number of images of {size[0]} x {size[1]} pixels '
          '(height x width)')
    if find_spec('onnxruntime') is None:
        print('not checked: there is no onnxruntime')
        return
    for batch_size in BATCH_SIZES:
        found = onnx_difference(module, args.out, size, batch_size, args.masks)
        print(f'onnxruntime against PyTorch, {batch_size} images: {found:.2g}')
        if not found <= TOLERANCE:
            raise ValueError(
                f'{args.out} is written, but its outputs differ from '
                f"PyTorch's by {found:.2g}, more than {TOLERANCE:g}")


def main(argv=None):
    args = parse_args(argv)
    with exit_on_user_error(__file__):
        run(args)


if __name__ == '__main__':
    main()
