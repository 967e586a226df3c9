"""The tools themselves: a tiny ET-ViT, killed in training and gone on with in forks."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import wait_for

from etta_mm.comparison import (Comparison, find_slots, read_plan, read_rows,
                                write_report)
from etta_mm.data import make_glyphs

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 10
NUM_IMAGES = dict(train=12, val=4, test=4)


def write_plan(folder: Path) -> Path:
    """A plan of one run on images below ``folder``."""
    options = {
        'load_from': None,
        'model.backbone.arch': dict(
            embed_dims=24, num_layers=1, feedforward_channels=32),
        'model.backbone.tuning': dict(
            ffn=dict(bottleneck_dims=6), attn=dict(num_prefix=3)),
        'model.head.in_channels': 24,
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': 1,
        'train_cfg.val_interval': 5
    }
    for split in NUM_IMAGES:
        loader = f'{split}_dataloader'
        options[loader] = dict(
            batch_size=4, num_workers=0, persistent_workers=False)
        options[f'{loader}.dataset.data_root'] = (
            f'{folder}/classification/printed/')
    path = folder / 'tiny.py'
    path.write_text(f"""
host, metric, seeds, epochs = 'ET-ViT', 'accuracy/top1', [3], {EPOCHS}
options = {options!r}
methods = [dict(name='ETTA', config='configs/glyphs/et_vit_glyphs.py')]
""")
    return path


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_a_killed_comparison_goes_on_to_table_and_figures(tmp_path):
    for split, num_images in NUM_IMAGES.items():
        make_glyphs(
            tmp_path,
            'classification',
            'printed',
            split,
            num_images,
            num_workers=1)
    plan_file = write_plan(tmp_path)
    work_dir, out = tmp_path / 'work', tmp_path / 'out'
    command = [
        sys.executable, ROOT / 'tools/compare.py', plan_file, '--work-dir',
        work_dir, '--out', out
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        wait_for(lambda: list(work_dir.glob('*/train/last_checkpoint')) or
                 process.poll() is not None)
        children = Path(
            f'/proc/{process.pid}/task/{process.pid}/children').read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert children
    wait_for(lambda: not any(is_alive(int(pid)) for pid in children.split()))
    last = next(work_dir.glob('*/train/last_checkpoint')).read_text()
    assert not last.endswith(f'epoch_{EPOCHS}.pth')  # it died with its parent

    plan = read_plan(plan_file, ROOT)
    comparison = Comparison(plan, ROOT, work_dir, out)
    assert comparison.run(find_slots(1, fork=True)) == 0
    row, = read_rows(out / 'results.json')
    log = next(work_dir.glob('*/output.log')).read_text()
    assert 'resumed epoch: ' in log
    assert [epoch for epoch, _ in row['validation']
            ] == [*range(5, EPOCHS + 1, 5)]
    assert row['status'] == 'finished' and 0 <= row['value'] <= 100
    assert 10 < row['trained_percent'] < 50
    assert row['samples_per_s'] == pytest.approx(4 / row['step_time_s'])
    assert row['peak_memory_bytes'] > 1e8 and row['wall_s'] > 2
    tested = next(work_dir.glob('*/test/*/*.json')).read_text()
    assert json.loads(tested)['accuracy/top1'] == row['value']
    again = write_report(plan, [row], tmp_path / 'again')
    assert again.read_bytes() == (out / 'README.md').read_bytes()
