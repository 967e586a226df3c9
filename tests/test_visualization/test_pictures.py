"""The pictures show what they are given."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from etta_mm.data import make_glyphs
from etta_mm.visualization import contact_sheet, read_scalars, training_curve
from etta_mm.visualization.contact_sheet import (PREDICTION_COLOUR,
                                                 TRUTH_COLOUR)


def _count(path, colour) -> int:
    pixels = np.asarray(Image.open(path).convert('RGB'))
    return int((pixels == np.array(colour, dtype=np.uint8)).all(-1).sum())


@pytest.fixture
def glyphs(tmp_path):
    folder = make_glyphs(
        tmp_path, 'detection', 'printed', 'val', 4, num_workers=1)
    return folder.parent / 'annotations/val.json', folder


def _predictions(score: float) -> list:
    return [
        dict(
            img_id=i,
            pred_instances=dict(
                bboxes=torch.tensor([[10., 10., 50., 60.]]),
                scores=torch.tensor([score]),
                labels=torch.tensor([7]))) for i in range(4)
    ]


def test_the_sheet_shows_truth_and_the_predictions_above_the_threshold(
        tmp_path, glyphs):
    sure = contact_sheet(tmp_path / 'sure.png', *glyphs, _predictions(0.9))
    unsure = contact_sheet(tmp_path / 'unsure.png', *glyphs, _predictions(0.1))
    assert _count(sure, TRUTH_COLOUR) > 100
    assert _count(sure, PREDICTION_COLOUR) > 100
    assert _count(unsure, TRUTH_COLOUR) == _count(sure, TRUTH_COLOUR)
    assert _count(unsure, PREDICTION_COLOUR) == 0


def _log(work_dir, losses) -> None:
    folder = work_dir / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    records = [dict(step=i, loss=loss) for i, loss in enumerate(losses)]
    records.append({'step': 1, 'coco/bbox_mAP': 0.5})
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))


def test_the_curve_is_drawn_from_the_log(tmp_path):
    _log(tmp_path / 'a', [3., 2., 1.])
    assert len(read_scalars(tmp_path / 'a')) == 4
    path = training_curve(tmp_path / 'curve.png', {'a': tmp_path / 'a'},
                          'coco/bbox_mAP')
    assert Image.open(path).size[0] > 500


def test_a_line_that_was_cut_short_is_passed_over(tmp_path):
    _log(tmp_path / 'a', [3., 2., 1.])
    log, = tmp_path.glob('a/*/vis_data/scalars.json')
    whole = read_scalars(tmp_path / 'a')
    log.write_text(log.read_text() + '\n{"step": 4, "lo')
    assert read_scalars(tmp_path / 'a') == whole


def test_a_work_dir_without_a_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_scalars(tmp_path)
