"""What starts as the identity starts with the base's loss."""
import json
from pathlib import Path

import pytest
from mmengine.config import Config
from torch.testing import assert_close

from etta_mm.comparison import initial_loss_page, initial_losses
from etta_mm.data import make_glyphs

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / 'docs/evidence/initial_loss'
NO_IDENTITY = ('concat', 'standard prefix')


def check(rows):
    for row in rows:
        assert_close(
            row['disabled_loss'], row['base_loss'], rtol=0, atol=1e-5)
        if not any(word in row['tuner'] for word in NO_IDENTITY):
            assert_close(row['loss'], row['base_loss'], rtol=0, atol=1e-5)
        else:
            assert abs(row['loss'] - row['base_loss']) > 1e-5, row['tuner']


def test_only_concatenated_prefixes_change_the_loss_at_step_0(tmp_path):
    make_glyphs(
        tmp_path, 'classification', 'handwritten', 'train', 8, num_workers=1)
    cfg = Config.fromfile(ROOT / 'configs/glyphs/et_vit_glyphs.py')
    cfg.train_dataloader.update(
        batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.data_root = str(
        tmp_path / 'classification/handwritten')
    check(initial_losses(cfg, num_batches=2))


def test_the_shipped_page_is_that_of_its_results():
    hosts = json.loads((SHIPPED / 'results.json').read_text())
    assert (SHIPPED / 'README.md').read_text() == initial_loss_page(hosts)


@pytest.mark.parametrize('host',
                         ['ET-ViT', 'ET-DETR', 'ET-Deformable DETR'])
def test_the_shipped_losses_are_those_of_the_base(host):
    check(json.loads((SHIPPED / 'results.json').read_text())[host])
