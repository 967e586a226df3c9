"""Inference as users do it: inferencers, and tools/demo.py on real files."""
import json
import re
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from mmpretrain.apis import ImageClassificationInferencer
from runs import (ROOT, classification_config, detection_config,
                  load_checkpoint, load_tool, run_code, save_base)

from etta_mm import load_tuned, save_tuned, tuned_weights
from etta_mm.checkpoints.convert import apply, build_model
from etta_mm.inference.predictor import DetectionPredictor, build_predictor

CLASSES = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'
#: The model of each snippet in docs/inference.md.
SNIPPETS = ('detector', 'classifier', 'detector')
NUM_FRAMES = 5
FRAME_SIZE = (96, 64)  # width, height


def make(folder: Path, write_config, data, **info):
    """A base, a tuned checkpoint with random tuners, and their config that
    names the base: (config, tuned, base)."""
    plain = write_config(folder / 'plain.py', data)
    base = save_base(plain, folder / 'base.pth')
    config = write_config(folder / 'tiny.py', data, load_from=str(base))
    model = build_model(Config.fromfile(config))
    model.load_state_dict(torch.load(base)['state_dict'], strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.tuners.' in name:
                parameter.normal_(std=0.5)
    tuned = save_tuned(model, folder / 'tuned.safetensors', **info)
    return str(config), str(tuned), base


@pytest.fixture(scope='module')
def detector(glyphs, tmp_path_factory):
    return make(
        tmp_path_factory.mktemp('detector'), detection_config, glyphs,
        dataset_meta=dict(classes=list(CLASSES)))


@pytest.fixture(scope='module')
def classifier(glyphs, tmp_path_factory):
    return make(
        tmp_path_factory.mktemp('classifier'), classification_config, glyphs,
        dataset_meta=dict(classes=list(CLASSES)))


@pytest.fixture(scope='module')
def images(glyphs):
    """Four JPEGs of 112 pixels with a few characters each."""
    return sorted((glyphs / 'detection/printed/test').glob('*.jpg'))


@pytest.fixture(scope='module')
def video(tmp_path_factory, images):
    """A small MPEG-4 of the images."""
    path = tmp_path_factory.mktemp('video') / 'small.mp4'
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, FRAME_SIZE)
    if not writer.isOpened():
        pytest.skip('this OpenCV cannot write mp4v')
    for i in range(NUM_FRAMES):
        writer.write(
            mmcv.imresize(mmcv.imread(str(images[i % len(images)])),
                          FRAME_SIZE))
    writer.release()
    return path


def demo(*args):
    load_tool('demo').main([*map(str, args), '--device', 'cpu'])


def error_of(*args):
    with pytest.raises(SystemExit) as error:
        demo(*args)
    message = str(error.value)
    assert message.startswith('demo.py: error: ') and '\n' not in message
    return message


def read(path):
    return json.loads(path.read_text())


def state_of(config, tuned, base):
    """What base and tuned checkpoint make together, by hand."""
    model = build_model(Config.fromfile(config))
    model.load_state_dict(torch.load(base)['state_dict'], strict=False)
    load_tuned(model, tuned)
    return model.state_dict()


def assert_states_equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def classification_inferencer(config, tuned):
    # It relies on the scope, which mmdet's inferencer has set before.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageClassificationInferencer(
            config, tuned_weights(config, tuned), device='cpu')


def test_mmdets_inferencer_takes_base_and_tuned_checkpoint(detector, images):
    config, tuned, base = detector
    inferencer = DetInferencer(config, tuned_weights(config, tuned), 'cpu')
    assert_states_equal(inferencer.model.state_dict(), state_of(*detector))
    assert inferencer.model.dataset_meta['classes'] == list(CLASSES)
    found = inferencer(str(images[0]))['predictions'][0]
    assert len(found['bboxes']) == 10
    # The name alone will do: it has the config.
    alone = DetInferencer(weights=tuned_weights(config, tuned), device='cpu')
    assert_states_equal(alone.model.state_dict(), state_of(*detector))


def test_mmpretrains_inferencer_takes_them_alike(classifier, images):
    config, tuned, base = classifier
    inferencer = classification_inferencer(config, tuned)
    assert_states_equal(inferencer.model.state_dict(), state_of(*classifier))
    found, = inferencer(str(images[0]))
    assert found['pred_class'] == CLASSES[found['pred_label']]


@pytest.mark.parametrize('number, name', enumerate(SNIPPETS))
def test_the_snippets_of_the_docs_run_as_they_stand(
        number, name, images, tmp_path, request):
    blocks = re.findall(r'```python\n(.*?)```',
                        (ROOT / 'docs/inference.md').read_text(), re.S)
    assert len(blocks) == len(SNIPPETS)
    config, tuned, _ = request.getfixturevalue(name)
    shutil.copy(images[0], tmp_path / 'image.jpg')
    shutil.copytree(images[0].parent, tmp_path / 'folder')
    done = run_code(f'config, tuned = {config!r}, {tuned!r}\n{blocks[number]}',
                    tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == 'detector':
        assert list((tmp_path / 'outputs/vis').iterdir())


def test_a_config_in_python_style_needs_no_scope(detector, images, tmp_path):
    config, tuned, _ = detector
    full = apply(Config.fromfile(config), tuned, tmp_path / 'full.pth')
    name = "'ETDeformableDETR'"
    text = Path(config).read_text()
    assert text.count(name) == 1
    lazy = tmp_path / 'lazy.py'
    lazy.write_text('from etta_mm.models import ETDeformableDETR\n' +
                    text.replace(name, name[1:-1]) + '\ndefault_scope = None')
    predictor = build_predictor(str(lazy), str(full), 'cpu')
    sample, = predictor.predict([mmcv.imread(str(images[0]))])
    assert len(predictor.as_dict(sample)['bboxes']) == 10


def test_a_base_elsewhere_can_be_named(detector, tmp_path):
    config, tuned, base = detector
    moved = Path(shutil.copy(base, tmp_path / 'moved.pth'))
    loaded = CheckpointLoader.load_checkpoint(
        tuned_weights(config, tuned, moved))
    assert_states_equal(loaded['state_dict'], state_of(*detector))
    with pytest.raises(FileNotFoundError, match='gone.pth.*Give one'):
        tuned_weights(config, tuned, str(tmp_path / 'gone.pth'))


def test_classes_come_from_the_config_where_the_file_has_none(
        glyphs, tmp_path):
    config, tuned, _ = make(tmp_path, classification_config, glyphs)
    loaded = CheckpointLoader.load_checkpoint(tuned_weights(config, tuned))
    assert ''.join(loaded['meta']['dataset_meta']['classes']) == CLASSES


def test_another_base_is_refused(detector, tmp_path):
    config, tuned, base = detector
    other = load_checkpoint(base)
    other['state_dict']['backbone.conv1.weight'] += 1
    torch.save(other, tmp_path / 'other.pth')
    name = tuned_weights(config, tuned, str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match='backbone.conv1.weight'):
        CheckpointLoader.load_checkpoint(name)


def test_a_config_that_is_not_tuned_is_refused(detector):
    # Its own model would take the base and leave the tuners out.
    config, tuned, base = detector
    plain = Path(config).with_name('untuned.py')
    plain.write_text(f'_base_ = {config!r}\nmodel = dict(tuning=None)\n')
    with pytest.raises(ValueError, match='not tuned.*config of the training'):
        CheckpointLoader.load_checkpoint(tuned_weights(plain, tuned, base))


def test_a_tuned_checkpoint_alone_is_no_model(detector):
    config, tuned, _ = detector
    with pytest.raises(ValueError, match=f'etta_mm://CONFIG::{tuned}'):
        DetInferencer(config, tuned, 'cpu')


def test_the_demo_draws_a_folder_and_writes_what_the_inferencer_finds(
        detector, images, tmp_path, capsys):
    config, tuned, _ = detector
    folder = tmp_path / 'in'
    (folder / 'deeper').mkdir(parents=True)
    names = ['a.jpg', 'b.jpg', 'deeper/a.jpg']
    for name, image in zip(names, images):
        shutil.copy(image, folder / name)
    (folder / 'notes.txt').write_text('no image')
    out = folder / 'outputs'  # within: what is drawn is not read again
    for _ in range(2):
        demo(folder, config, '--tuned', tuned, '--out-dir', out,
             '--batch-size', 2, '--pred-score-thr', 0)
        assert '3 predicted' in capsys.readouterr().out
    inferencer = DetInferencer(
        config, tuned_weights(config, tuned), 'cpu', show_progress=False)
    assert {str(p.relative_to(out / 'preds')) for p in
            (out / 'preds').rglob('*.json')} == {f'{n}.json' for n in names}
    for name in names:
        expected = inferencer(str(folder / name))['predictions'][0]
        found = read(out / f'preds/{name}.json')
        assert found.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-4)
        drawn = mmcv.imread(str(out / 'vis' / name))
        plain = mmcv.imread(str(folder / name))
        assert drawn.shape == plain.shape and (drawn != plain).any()


def test_nothing_is_drawn_above_the_highest_score(detector, images):
    config, tuned, _ = detector
    predictor = build_predictor(config, tuned_weights(config, tuned), 'cpu')
    assert isinstance(predictor, DetectionPredictor)
    image = mmcv.imread(str(images[0]))
    sample, = predictor.predict([image])
    assert np.array_equal(predictor.draw(image, sample, 1.), image)
    assert not np.array_equal(predictor.draw(image, sample, 0.), image)


def test_a_picture_keeps_its_colours(classifier, images):
    config, tuned, _ = classifier
    predictor = build_predictor(config, tuned_weights(config, tuned), 'cpu')
    image = np.zeros((250, 260, 3), np.uint8)
    image[..., 0] = 200  # blue
    sample, = predictor.predict([image])
    drawn = predictor.draw(image, sample, 1.1)  # and nothing on it
    assert np.array_equal(drawn, image)


def test_more_classes_than_colours_are_drawn(detector, images, tmp_path):
    config, _, base = detector
    names = [f'class {i}' for i in range(81)]
    path = tmp_path / 'base.pth'
    torch.save(dict(torch.load(base), meta=dict(
        dataset_meta=dict(classes=names))), path)
    predictor = DetectionPredictor(config, str(path), 'cpu')
    image = mmcv.imread(str(images[0]))
    found = DetDataSample(pred_instances=InstanceData(
        bboxes=torch.tensor([[10., 10., 50., 60.]]),
        scores=torch.tensor([0.9]), labels=torch.tensor([80])))
    assert (predictor.draw(image, found, 0.5) != image).any()


def test_the_demo_classifies_images_of_any_size(classifier, images, tmp_path):
    config, tuned, _ = classifier
    folder = tmp_path / 'in'
    folder.mkdir()
    for side in (32, 64, 300):  # this config does not resize
        mmcv.imwrite(
            mmcv.imresize(mmcv.imread(str(images[0])), (side, side)),
            str(folder / f'{side}.png'))
    demo(folder, config, '--tuned', tuned, '--out-dir', tmp_path / 'out',
         '--batch-size', 3)
    inferencer = classification_inferencer(config, tuned)
    for side, drawn_side in ((32, 240), (64, 240), (300, 300)):
        expected, = inferencer(str(folder / f'{side}.png'))
        found = read(tmp_path / f'out/preds/{side}.png.json')
        np.testing.assert_allclose(
            found['pred_scores'], expected['pred_scores'], atol=1e-5)
        assert found['pred_class'] == expected['pred_class']
        drawn = mmcv.imread(str(tmp_path / f'out/vis/{side}.png'))
        assert drawn.shape == (drawn_side, drawn_side, 3)


def test_the_demo_predicts_each_frame_of_a_video(detector, video, tmp_path):
    config, tuned, _ = detector
    demo(video, config, '--tuned', tuned, '--out-dir', tmp_path,
         '--batch-size', 2)
    found = read(tmp_path / 'preds/small.mp4.json')
    assert len(found) == NUM_FRAMES
    predictor = build_predictor(config, tuned_weights(config, tuned), 'cpu')
    last, = predictor.predict([mmcv.VideoReader(str(video))[NUM_FRAMES - 1]])
    np.testing.assert_allclose(
        found[-1]['scores'], predictor.as_dict(last)['scores'], atol=1e-4)
    drawn = mmcv.VideoReader(str(tmp_path / 'vis/small.mp4'))
    assert (len(drawn), drawn.resolution, drawn.fps) == (NUM_FRAMES,
                                                         FRAME_SIZE, 10)


def test_a_full_checkpoint_will_do_as_well(classifier, images, tmp_path):
    config, tuned, base = classifier
    torch.save(dict(state_dict=state_of(*classifier)), tmp_path / 'full.pth')
    outs = []
    for i, weights in enumerate((['--tuned', tuned],
                                 ['--checkpoint', tmp_path / 'full.pth'])):
        demo(images[0], config, *weights, '--out-dir', tmp_path / str(i))
        outs.append(
            read(tmp_path / f'{i}/preds/{images[0].name}.json')['pred_scores'])
    assert outs[0] == outs[1]


def test_a_full_checkpoint_of_another_head_is_refused(
        detector, classifier, images, tmp_path):
    for (config, *rest), head in ((detector, 'bbox_head'), (classifier, 'head')):
        other = tmp_path / 'other.py'
        other.write_text(f'_base_ = {config!r}\n'
                         f'model = dict({head}=dict(num_classes=35))\n')
        full = tmp_path / 'full.pth'
        torch.save(dict(state_dict=state_of(config, *rest)), full)
        said = error_of(images[0], other, '--checkpoint', full,
                        '--out-dir', tmp_path / 'out')
        assert 'full.pth' in said and 'num_classes' in said
    assert not (tmp_path / 'out').exists()


def test_files_that_hold_no_image_are_named_and_passed_over(
        detector, images, tmp_path, capsys):
    config, tuned, _ = detector
    folder = tmp_path / 'in'
    folder.mkdir()
    shutil.copy(images[0], folder / 'good.jpg')
    (folder / 'cut.jpg').write_bytes(images[0].read_bytes()[:50])
    (folder / 'empty.png').touch()
    # Resized as the pipeline says, it would be less than a pixel wide.
    mmcv.imwrite(np.zeros((2, 4000, 3), np.uint8), str(folder / 'flat.png'))
    demo(folder, config, '--tuned', tuned, '--out-dir', tmp_path / 'out',
         '--batch-size', 2)
    shown = capsys.readouterr().out
    assert 'cut.jpg' in shown and 'empty.png' in shown and '1 pred' in shown
    assert 'flat.png' in shown
    assert len(list((tmp_path / 'out/vis').iterdir())) == 1


def test_a_source_that_would_be_written_over_stays_as_it_is(
        detector, images, video, tmp_path):
    config, tuned, _ = detector
    drawn = tmp_path / 'vis'
    drawn.mkdir()
    sources = [Path(shutil.copy(path, drawn)) for path in (images[0], video)]
    before = [path.read_bytes() for path in sources]
    for source in (*sources, drawn):
        assert 'written over' in error_of(source, config, '--tuned', tuned,
                                          '--out-dir', tmp_path)
    assert [path.read_bytes() for path in sources] == before
    assert not (tmp_path / 'preds').exists()


def test_a_folder_and_a_video_show_a_progress_bar(
        classifier, images, video, tmp_path, capsys):
    config, tuned, _ = classifier
    for source, name in ((images[0].parent, 'Images'), (video, 'Frames')):
        demo(source, config, '--tuned', tuned, '--out-dir', tmp_path)
        assert re.search(f'{name} .*100%', capsys.readouterr().out)


def test_bad_input_gets_one_message(detector, classifier, images, tmp_path):
    config, tuned, base = detector
    weights = ['--tuned', tuned, '--out-dir', tmp_path / 'out']
    broken, empty = tmp_path / 'broken.jpg', tmp_path / 'empty'
    broken.write_bytes(b'no image')
    empty.mkdir()
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    (tmp_path / 'text.txt').write_text('text')
    unclosed = tmp_path / 'unclosed.py'
    unclosed.write_text('model = dict(')
    untested, wrapped = tmp_path / 'untested.py', tmp_path / 'wrapped.py'
    untested.write_text(f'_base_ = {config!r}\ntest_dataloader = None\n'
                        'test_cfg = test_evaluator = None\n')
    wrapped.write_text(f'_base_ = {config!r}\ntest_dataloader = dict(dataset='
                       "dict(_delete_=True, type='ConcatDataset'))\n")
    image = images[0]
    for message, args in {
            'is no safetensors file, but a full checkpoint as torch.save writes '
            'it: give it as --checkpoint': [image, config, '--tuned', base],
            'is a folder. Give one that exists; the order of the arguments is '
            'SOURCE CONFIG': [config, image.parent, *weights],
            'is no config': [config, image, *weights],
            'none.jpg': [tmp_path / 'none.jpg', config, *weights],
            'holds no image': [empty, config, *weights],
            'none of its 1 files': [broken, config, *weights],
            'cannot be read as a video':
            [tmp_path / 'broken.mp4', config, *weights],
            'text.txt is neither a folder': [
                tmp_path / 'text.txt', config, *weights
            ],
            "The config 'none.py'": [image, 'none.py', *weights],
            'none.safetensors': [
                image, config, '--tuned', tmp_path / 'none.safetensors'
            ],
            'at least 1': [image, config, *weights, '--batch-size', 0],
            'between 0 and 1': [
                image, config, *weights, '--pred-score-thr', 2
            ],
            'tunes only backbone': [
                image, config, '--tuned', classifier[1]
            ],
            'error: this is no checkpoint of the base of ETDeformableDETR': [
                image, config, *weights, '--base', classifier[2]
            ],
            'and 54 belong to nothing': [
                image, config, '--checkpoint', classifier[2]
            ],
            "in line 1, 'model = dict('": [image, unclosed, *weights],
            'untested.py has no test_dataloader.dataset.pipeline':
            [image, untested, *weights],
            'wrapped.py has no test_dataloader.dataset.pipeline':
            [image, wrapped, *weights],
    }.items():
        assert message in error_of(*args), message


def test_a_device_that_is_not_there_is_refused(detector):
    config, tuned, _ = detector
    for device, message in (('gpu', 'no device'), ('cuda:99', 'not there'),
                            ('mps', 'not there'), ('meta', 'not there')):
        with pytest.raises(ValueError, match=message):
            build_predictor(config, tuned_weights(config, tuned), device)


def test_the_tool_exports_what_onnxruntime_confirms(classifier, tmp_path,
                                                    capsys):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    config, tuned, _ = classifier
    out = tmp_path / 'model.onnx'
    load_tool('export_onnx').main(
        [config, '--tuned', tuned, '--out', str(out)])
    assert out.is_file()
    assert capsys.readouterr().out.count('onnxruntime against PyTorch') == 2
    with pytest.raises(SystemExit, match='must be at least 1'):
        load_tool('export_onnx').main([
            config, '--tuned', tuned, '--out',
            str(out), '--image-size', '0', '32'
        ])
    with pytest.raises(SystemExit, match='takes no padding masks'):
        load_tool('export_onnx').main(
            [config, '--tuned', tuned, '--out', str(out), '--masks'])


@pytest.mark.parametrize('tool, args', [
    ('export_onnx', lambda config, tuned, out:
     [config, '--tuned', tuned, '--out', out, '--image-size', 32, 32]),
    ('tuned', lambda config, tuned, out: ['apply', config, tuned, out]),
], ids=['export_onnx', 'tuned'])
def test_a_base_of_another_architecture_is_one_message(
        tool, args, detector, classifier, tmp_path):
    config, tuned, _ = detector
    args = *args(config, tuned, tmp_path / 'out'), '--base', classifier[2]
    with pytest.raises(SystemExit) as stop:
        load_tool(tool).main([*map(str, args)])
    assert str(stop.value).startswith(
        f'{tool}.py: error: this is no checkpoint of the base of')


def test_the_demo_documents_itself(capsys):
    with pytest.raises(SystemExit):
        load_tool('demo').parse_args(['--help'])
    shown = capsys.readouterr().out
    assert 'image, folder of images, or video' in shown
    assert (ROOT / 'docs/inference.md').read_text().count('tools/demo.py')
