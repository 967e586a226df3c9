"""mmdet's and mmpretrain's own tools on our configs and checkpoints."""
import json
import re
import runpy
import sys
from pathlib import Path

import mmdet
import mmpretrain
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.analysis.print_helper import _format_size
from mmpretrain.apis import ImageClassificationInferencer
from runs import classification_config, load_checkpoint, load_tool

MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim/tools'
MMPRETRAIN_TOOLS = Path(mmpretrain.__file__).parent / '.mim/tools'
IMAGE = 'printed/test/000000.jpg'


@pytest.fixture(scope='module')
def classifier(glyphs, tmp_path_factory):
    """A tiny ET-ViT after one epoch: (config, work dir)."""
    folder = tmp_path_factory.mktemp('classifier')
    config = classification_config(folder / 'tiny_classifier.py', glyphs)
    load_tool('train').main([str(config), '--work-dir', str(folder)])
    return config, folder


def run_script(monkeypatch, script: Path, *args) -> None:
    monkeypatch.setattr(sys, 'argv', [str(script), *map(str, args)])
    runpy.run_path(str(script), run_name='__main__')


def test_det_inferencer_reads_our_config_and_checkpoint(trained, glyphs):
    config, work_dir, _ = trained
    inferencer = DetInferencer(
        str(config), str(work_dir / 'epoch_1.pth'), device='cpu')
    found = inferencer(
        str(glyphs / 'detection' / IMAGE),
        no_save_vis=True,
        print_result=False)['predictions'][0]
    assert len(found['scores']) == len(found['bboxes']) == 10
    state = load_checkpoint(work_dir / 'epoch_1.pth')['state_dict']
    tuners = [name for name in state if '.tuners.' in name]
    assert tuners
    for name in tuners:
        assert torch.equal(inferencer.model.state_dict()[name], state[name])


def test_mmdets_test_script_evaluates_our_checkpoint(trained, monkeypatch,
                                                     tmp_path):
    config, work_dir, _ = trained
    checkpoint = work_dir / 'epoch_1.pth'
    run_script(monkeypatch, MMDET_TOOLS / 'test.py', config, checkpoint,
               '--work-dir', tmp_path / 'theirs')
    load_tool('test').main(
        [str(config),
         str(checkpoint), '--work-dir',
         str(tmp_path / 'ours')])
    theirs, ours = (
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        for name in ('theirs', 'ours'))
    assert theirs['coco/bbox_mAP'] == ours['coco/bbox_mAP']


def test_mmdets_get_flops_counts_the_tuned_model(trained, monkeypatch, capsys):
    config, work_dir, _ = trained
    run_script(monkeypatch, MMDET_TOOLS / 'analysis_tools/get_flops.py',
               config, '--num-images', 1)
    report = next(work_dir.glob('*/*.log')).read_text()
    total = re.search(r'of ([\d,]+) parameters are trained', report).group(1)
    expected = _format_size(int(total.replace(',', '')))
    shown = capsys.readouterr().out
    assert f'Params: {expected}\n' in shown
    assert re.search(r'Flops: [1-9]', shown)


def test_mmdets_analyze_logs_reads_our_log(trained, monkeypatch, capsys):
    _, work_dir, _ = trained
    log = next(work_dir.glob('*/vis_data/scalars.json'))
    run_script(monkeypatch, MMDET_TOOLS / 'analysis_tools/analyze_logs.py',
               'cal_train_time', log)
    assert 'average iter time' in capsys.readouterr().out


def test_classification_inferencer_reads_our_config_and_checkpoint(
        classifier, glyphs):
    config, work_dir = classifier
    image = next((glyphs / 'classification/printed/test').rglob('*.jpg'))
    inferencer = ImageClassificationInferencer(
        str(config), str(work_dir / 'epoch_1.pth'), device='cpu')
    found, = inferencer(str(image))
    assert found['pred_scores'].shape == (36, )
    assert found['pred_class'] in '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'


def test_mmpretrains_test_script_evaluates_our_checkpoint(
        classifier, monkeypatch, tmp_path):
    config, work_dir = classifier
    checkpoint = work_dir / 'epoch_1.pth'
    run_script(monkeypatch, MMPRETRAIN_TOOLS / 'test.py', config, checkpoint,
               '--work-dir', tmp_path / 'theirs')
    load_tool('test').main(
        [str(config),
         str(checkpoint), '--work-dir',
         str(tmp_path / 'ours')])
    theirs, ours = (
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        for name in ('theirs', 'ours'))
    assert theirs['accuracy/top1'] == ours['accuracy/top1']
