"""Exported models: the host's outputs, without data samples, anywhere.

Run as a script, this file measures the table in docs/export.md anew and writes
it::

    python tests/test_inference/test_export.py
"""
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hosts import HOSTS, classifier_config, randomise
from mmdet.models import GroundingDINO
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch._dynamo.exc import UserError
from torch.testing import assert_close

from etta_mm.inference.export import (OPSET, example_inputs, export_onnx,
                                      export_program, image_size_of,
                                      onnx_difference)
from etta_mm.inference.exportable import StaticDeformableAttention, exportable

TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=6),
    attn=dict(type='ScaledPrefix', num_prefix=3))
TUNINGS = dict(
    parallel=TUNING,
    concat=dict(
        ffn=dict(type='LoRA', rank=2),
        attn=dict(type='ScaledPrefix', num_prefix=3, composition='concat')))
#: The three systems, and whether they take padding masks.
SYSTEMS = dict(vit=False, detr=True, deformable=True)
DETECTORS = [
    'detr', 'deformable', 'deformable_refine', 'deformable_twostage',
    'conditional_detr', 'dab_detr', 'dino'
]
#: The hosts of the table in the docs.
HOST_NAMES = {
    'ET-ViT': 'vit',
    'ET-DETR': 'detr',
    'ET-Deformable DETR': 'deformable',
    'with box refinement': 'deformable_refine',
    'two-stage': 'deformable_twostage',
    'ET-Conditional DETR': 'conditional_detr',
    'ET-DAB-DETR': 'dab_detr',
    'ET-DINO': 'dino',
}
DOCS = Path(__file__).parents[2] / 'docs/export.md'
ROW = re.compile(r'^\| (.+?) \| (.+) \|$', re.M)
FAILS = 'does not export: see below'
IMAGE_SIZE = (64, 48)
ONNX_TOLERANCE = 1e-4
ROUNDING = dict(atol=1e-5, rtol=1e-5)


def size_of(name):
    return (32, 32) if name == 'vit' else IMAGE_SIZE


def build(name, tuning=TUNING):
    """A tuned host none of whose tuners is zero, in eval."""
    model = HOSTS[name].build(tuning)
    model.load_state_dict(HOSTS[name].base_weights(), strict=False)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if '.tuners.' in key:
                parameter.normal_(std=0.3)
    return model.eval()


def samples_of(masks):
    """Data samples that say what the masks say."""
    return [
        DetDataSample(metainfo=dict(
            batch_input_shape=tuple(mask.shape),
            img_shape=((~mask).any(1).sum().item(),
                       (~mask).any(0).sum().item()))) for mask in masks
    ]


def build_shallow(name):
    """A tuned system with one encoder layer and random weights."""
    cfg = HOSTS[name].config()
    if name == 'vit':
        cfg['backbone']['arch']['num_layers'] = 1
        cfg['backbone'].update(tuning=TUNING)
    else:
        cfg['encoder']['num_layers'] = 1
        cfg.update(tuning=TUNING)
    scope = 'mmpretrain' if name == 'vit' else 'mmdet'
    with DefaultScope.overwrite_default_scope(scope):
        model = ROOT.build(dict(cfg, _scope_=scope))
    randomise(model)
    return model.eval()


@pytest.fixture(scope='module')
def programs():
    """Each system: its exportable module and its program, made once."""
    made = {}
    for name, with_masks in SYSTEMS.items():
        module = exportable(build_shallow(name))
        made[name] = module, export_program(module, size_of(name), with_masks)
    return made


@pytest.mark.parametrize('tuning', TUNINGS)
@pytest.mark.parametrize('name', DETECTORS)
def test_an_exportable_detector_gives_what_its_host_gives(name, tuning):
    model = build(name, TUNINGS[tuning])
    module = exportable(model)
    inputs = example_inputs(module, IMAGE_SIZE, 3, with_masks=True)
    assert inputs['masks'].any() and not inputs['masks'][0].any()
    no_masks = torch.zeros_like(inputs['masks'])
    for given, masks in ((inputs['masks'], inputs['masks']), (None, no_masks)):
        with torch.no_grad():
            logits, boxes = model(
                inputs['images'], samples_of(masks), mode='tensor')[:2]
            found = module(inputs['images'], given)
        assert_close(found, (boxes[-1], logits[-1]), **ROUNDING)


def test_a_padding_mask_matters():
    module = exportable(build('deformable'))
    inputs = example_inputs(module, IMAGE_SIZE, 2, with_masks=True)
    with torch.no_grad():
        masked, plain = module(**inputs), module(inputs['images'])
    assert_close(masked[0][0], plain[0][0], **ROUNDING)  # is not padded
    assert (masked[0][1] - plain[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize('head', ['cls', 'multilabel', 'regression'])
def test_the_scores_of_a_head_are_those_that_it_predicts(head):
    """A regression's are values, of which there is no softmax."""
    types = dict(cls='LinearClsHead', multilabel='MultiLabelLinearClsHead',
                 regression='LinearRegressionHead')
    cfg = HOSTS['vit'].config()
    cfg['head'] = dict(type=types[head], num_classes=3, in_channels=16)
    if types[head] not in MODELS:
        pytest.skip('this mmpretrain has no regression')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = torch.stack([
            sample.pred_score for sample in model(images, mode='predict')])
        assert_close(exportable(model)(images)[0], found)


def test_a_head_of_another_kind_is_refused():
    model = build('vit')
    model.head = torch.nn.Linear(16, 3)
    with pytest.raises(TypeError, match='Linear, cannot be exported.*ClsHead'):
        exportable(model)


def test_a_detector_that_takes_a_text_is_refused():
    with pytest.raises(TypeError, match='GroundingDINO cannot be exported'):
        exportable(GroundingDINO.__new__(GroundingDINO))


def test_an_exportable_classifier_gives_the_scores_of_its_predictions():
    model = build('vit')
    images = example_inputs(model, (32, 32), 3)['images']
    with torch.no_grad():
        expected = [s.pred_score for s in model(images, mode='predict')]
        scores, = exportable(model)(images)
    assert_close(scores, torch.stack(expected), **ROUNDING)


def test_a_multi_label_classifier_gives_sigmoid_scores():
    cfg = classifier_config()
    cfg.head = dict(type='MultiLabelLinearClsHead', num_classes=3,
                    in_channels=16)
    model = MODELS.build(cfg).eval()
    images = example_inputs(model, (32, 32))['images']
    with torch.no_grad():
        scores, = exportable(model)(images)
        assert_close(scores, model(images, mode='tensor').sigmoid())


def test_the_model_itself_stays_as_it_is():
    model = build('deformable')
    types = [type(module) for module in model.modules()]
    module = exportable(model.train())
    assert not module.host.training and model.training
    assert types == [type(module) for module in model.modules()]
    assert any(
        isinstance(m, StaticDeformableAttention) for m in module.modules())


@pytest.mark.parametrize('name', SYSTEMS)
def test_an_exported_program_takes_any_number_of_images(name, programs):
    module, program = programs[name]
    for batch_size in (1, 2, 5):
        inputs = example_inputs(
            module, size_of(name), batch_size, SYSTEMS[name], seed=1)
        with torch.no_grad():
            assert_close(
                program.module()(**inputs), module(**inputs), **ROUNDING)


@pytest.mark.parametrize('name', SYSTEMS)
def test_onnxruntime_gives_what_pytorch_gives(name, programs, tmp_path):
    onnx = pytest.importorskip('onnx')
    for package in ('onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    module, program = programs[name]
    path = export_onnx(program, tmp_path / 'new' / f'{name}.onnx')
    for batch_size in (1, 3):
        assert onnx_difference(module, path, size_of(name), batch_size,
                               SYSTEMS[name]) <= ONNX_TOLERANCE
    assert list(path.parent.iterdir()) == [path]  # the weights are in it
    sets = {s.domain: s.version for s in onnx.load(path).opset_import}
    assert sets[''] == OPSET == 23


def test_what_cannot_be_exported_says_what_can():
    with pytest.raises(TypeError, match='FCOS.*ImageClassifier.*Detection'):
        exportable(build('vit_detector'))
    with pytest.raises(ValueError, match='no padding masks'):
        export_program(exportable(build('vit')), (32, 32), with_masks=True)


def test_the_size_of_the_images_comes_from_the_config():
    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    detection = Config(
        dict(
            model=dict(backbone=dict()),
            test_dataloader=dict(
                dataset=dict(pipeline=[dict(type='Load'), resize]))))
    assert image_size_of(detection) == (800, 1333)
    assert image_size_of(
        Config(dict(model=dict(backbone=dict(img_size=384))))) == (384, 384)
    with pytest.raises(ValueError, match='--image-size HEIGHT WIDTH'):
        image_size_of(Config(dict(model=dict(backbone=dict()))))


def table() -> dict:
    """What the docs say of each host."""
    return {row[1]: row[2] for row in ROW.finditer(DOCS.read_text())
            if row[1] in HOST_NAMES}


def test_the_differences_in_the_docs_are_within_the_tolerance():
    assert list(table()) == list(HOST_NAMES)
    assert [name for name, said in table().items() if said == FAILS] == [
        'ET-DINO']
    for said in table().values():
        assert said == FAILS or 0 < float(said) <= ONNX_TOLERANCE


def measured(name: str) -> str:
    """What the docs should say of a host."""
    torch.manual_seed(0)
    module, size, with_masks = exportable(build(name)), size_of(name), (
        name != 'vit')
    try:
        program = export_program(module, size, with_masks)
    except UserError as error:
        print(error)
        return FAILS
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(program, f'{folder}/model.onnx')
        return '{:.1e}'.format(
            max(onnx_difference(module, path, size, batch_size, with_masks)
                for batch_size in (1, 3)))


def main() -> None:
    """Measure every host, or those named, and write it into the docs."""
    import mmdet.models  # noqa: F401  (fill the registries)
    import mmpretrain.models  # noqa: F401
    torch.set_num_threads(1)
    for name in sys.argv[1:] or HOST_NAMES:
        found = measured(HOST_NAMES[name])
        print(name, found, flush=True)
        DOCS.write_text(
            DOCS.read_text().replace(f'| {name} | {table()[name]} |',
                                     f'| {name} | {found} |'))


if __name__ == '__main__':
    main()
