"""The main job on the embedded benchmark, from nothing to a picture.

Makes Glyphs, tests the printed base on handwritten digits, fine-tunes
ET-Deformable DETR through tools/train.py, tests it through tools/test.py and
draws predictions and a training curve.
"""
import argparse
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

from mmengine.config import Config

from etta_mm.comparison.results import tested
from etta_mm.engine import build_on_meta, count_parameters
from etta_mm.visualization import (contact_sheet, read_scalars,
                                   training_curve)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/glyphs/et_deformable_detr_glyphs.py'
BASE_CONFIG = ROOT / 'configs/glyphs/deformable_detr_handwritten.py'
BASE = ROOT / 'configs/glyphs/weights/deformable_detr_printed.safetensors'
DATA = ROOT / 'data/glyphs'
METRIC = 'coco/bbox_mAP'


def run(tool: str, *args) -> None:
    """Run one of the tools beside this one, from the checkout."""
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
    print('$ ' + ' '.join(['python', f'tools/{tool}', *map(str, args)]),
          flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir', default='work_dirs/demo', help='where everything goes')
    args = parser.parse_args()
    work_dir = ROOT / args.work_dir
    start = time.perf_counter()

    run('make_glyphs.py', '--out', DATA, '--tasks', 'detection', '--domains',
        'handwritten')
    run('test.py', BASE_CONFIG, BASE, '--work-dir', work_dir / 'base')
    run('train.py', CONFIG, '--work-dir', work_dir / 'tuned')
    checkpoint = Path((work_dir / 'tuned/last_checkpoint').read_text())
    predictions = work_dir / 'predictions.pkl'
    run('test.py', CONFIG, checkpoint, '--work-dir', work_dir / 'test',
        '--out', predictions)

    home = DATA / 'detection/handwritten'
    sheet = contact_sheet(work_dir / 'contact_sheet.png',
                          home / 'annotations/test.json', home / 'test',
                          pickle.loads(predictions.read_bytes()))
    curve = training_curve(work_dir / 'training_curve.png',
                           {'ETTA': work_dir / 'tuned'}, METRIC)
    report = count_parameters(build_on_meta(Config.fromfile(CONFIG)))
    tuned = checkpoint.with_suffix('.safetensors')
    steps = [r['time'] for r in read_scalars(work_dir / 'tuned') if 'loss' in r]
    print(f"""
AP on handwritten digits (test images, IoU 0.50:0.95)
  before, printed base   {tested(work_dir / 'base', METRIC):.3f}
  after, ETTA            {tested(work_dir / 'test', METRIC):.3f}
trained parameters       {report.trainable:,} of {report.total:,} \
({report.percent:.2f} %)
checkpoints
  full                   {checkpoint.stat().st_size / 1e6:.2f} MB
  tuned only             {tuned.stat().st_size / 1e6:.2f} MB
time
  per step               {sum(steps) / len(steps):.3f} s
  in all                 {time.perf_counter() - start:.0f} s
pictures
  {os.path.relpath(sheet)}
  {os.path.relpath(curve)}""")


if __name__ == '__main__':
    main()
