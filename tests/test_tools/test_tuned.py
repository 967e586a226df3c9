"""tools/tuned.py: tuned checkpoints looked into, made and unmade."""
import copy

import pytest
import torch
from hosts import HOSTS, output
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from runs import load_tool
from safetensors.torch import load_file
from torch.testing import assert_close

from etta_mm import save_tuned
from etta_mm.checkpoints import read_metadata

HOST = HOSTS['detr']
CLASSES = ['cat', 'dog', 'cow']
ADAPTER = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=5), train=['bbox_head'])
LORA = dict(attn=dict(type='LoRA', rank=2), train=['bbox_head'])


def model(tuning, seed=0):
    """The tuned host with the base's weights and trained tuners."""
    torch.manual_seed(seed)
    built = HOST.build(copy.deepcopy(tuning))
    built.load_state_dict(HOST.base_weights(), strict=False)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return built.eval()


class Case:
    """Files of one tuning in a folder of its own."""

    def __init__(self, folder, tuning):
        self.model = model(tuning)
        cfg = dict(
            default_scope='mmdet',
            model=dict(HOST.config(), tuning=tuning),
            load_from=str(folder / 'base.pth'))
        self.config = folder / 'config.py'
        self.config.write_text('\n'.join(
            f'{key} = {value!r}'
            for key, value in Config(cfg).to_dict().items()))
        torch.save(dict(state_dict=HOST.base_weights()), folder / 'base.pth')
        self.full = folder / 'epoch_3.pth'
        meta = dict(epoch=3, iter=30, dataset_meta=dict(classes=CLASSES))
        torch.save(
            dict(state_dict=self.model.state_dict(), meta=meta), self.full)
        self.tuned = save_tuned(
            self.model,
            folder / 'epoch_3.safetensors',
            epoch=3,
            iter=30,
            dataset_meta=dict(classes=CLASSES))
        self.out = folder / 'out'


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path, ADAPTER)


def run(*args):
    """Run the tool; its exit code."""
    with pytest.raises(SystemExit) as stop:
        load_tool('tuned').main([str(arg) for arg in args])
    return stop.value.code


def test_inspect_prints_what_the_file_says(case, capsys):
    assert run('inspect', case.tuned) == 0
    shown = capsys.readouterr().out
    for word in ('ETDETR', 'ParallelAdapter', 'bottleneck_dims', 'bbox_head',
                 'cat, dog, cow', 'epoch', 'torch', 'mmcv', 'float32',
                 read_metadata(case.tuned)['base_fingerprint']):
        assert word in shown, word


def test_extract_makes_the_file_that_training_writes(case):
    out = case.out.with_suffix('.safetensors')
    assert run('extract', case.config, case.full, out) == 0
    assert run('diff', out, case.tuned) == 0


def test_extract_makes_the_file_that_a_training_has_written(trained,
                                                            tmp_path):
    config, work_dir, _ = trained
    full, out = work_dir / 'epoch_1.pth', tmp_path / 'out.safetensors'
    written = full.with_suffix('.safetensors')
    info = read_metadata(written)['info']['dataset_meta']
    assert {'classes', 'palette'} <= info.keys()
    assert run('extract', config, full, out) == 0
    assert run('diff', out, written) == 0


def test_extract_refuses_a_base(case):
    message = run('extract', case.config, case.full.with_name('base.pth'),
                  case.out)
    assert 'no full checkpoint' in message and 'tuners' in message
    assert not case.out.exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_apply_makes_the_full_checkpoint(case, suffix):
    out = case.out.with_suffix(suffix)
    assert run('apply', case.config, case.tuned, out) == 0
    other = model(ADAPTER, seed=1)
    checkpoint = load_checkpoint(other, str(out), strict=True)
    expected = case.model.state_dict()
    assert_close(dict(other.state_dict()), dict(expected), rtol=0, atol=0)
    if suffix == '.pth':
        assert checkpoint['meta']['dataset_meta']['classes'] == CLASSES
        written = Config.fromstring(checkpoint['meta']['cfg'], '.py')
        assert written.model == Config.fromfile(case.config).model


def test_apply_refuses_another_base_and_names_what_differs(case):
    state = HOST.base_weights()
    state['neck.convs.0.conv.weight'] += 1
    base = case.full.with_name('other.pth')
    torch.save(dict(state_dict=state), base)
    message = run('apply', case.config, case.tuned, case.out, '--base', base)
    assert 'another base' in message and 'neck.convs.0.conv.weight' in message
    assert not case.out.exists()


def test_apply_refuses_a_config_that_is_not_tuned(case):
    text = case.config.read_text()
    case.config.write_text(text + "\nmodel['tuning'] = None\n")
    message = run('apply', case.config, case.tuned, case.out)
    assert 'not tuned' in message and 'config of the training' in message
    assert not case.out.exists()


def test_diff_of_a_file_and_its_copy_is_nothing(case, capsys):
    assert run('diff', case.tuned, case.tuned) == 0
    assert 'no difference' in capsys.readouterr().out


def test_diff_names_metadata_and_tensors(case, capsys):
    other = save_tuned(
        model(dict(ADAPTER, train=[]), seed=1), case.tuned.with_name('b'),
        epoch=4)
    assert run('diff', case.tuned, other) == 1
    shown = capsys.readouterr().out
    assert 'info.epoch: 3 | 4' in shown
    assert "tuning.train: ['bbox_head'] | []" in shown
    assert 'bbox_head.fc_cls.bias: only in' in shown
    assert 'ffn.tuners.parallel_adapter.up.bias: differs by up to' in shown


def test_merge_gives_a_checkpoint_of_the_plain_host(tmp_path):
    case = Case(tmp_path, LORA)
    out = case.out.with_suffix('.pth')
    assert run('merge', case.config, case.tuned, out) == 0
    plain = copy.deepcopy(HOST.base())
    load_checkpoint(plain, str(out), strict=True)
    assert_close(
        output(plain, HOST.batch()),
        output(case.model, HOST.batch()),
        rtol=1e-4,
        atol=1e-4)


def test_merge_says_what_it_cannot_fold(tmp_path, case, capsys):
    assert 'no LoRA' in run('merge', case.config, case.tuned, case.out)
    assert not case.out.exists()
    (tmp_path / 'both').mkdir()
    both = Case(tmp_path / 'both', dict(LORA, ffn=ADAPTER['ffn']))
    out = both.out.with_suffix('.safetensors')
    assert run('merge', both.config, both.tuned, out) == 0
    assert '4 ParallelAdapter' in capsys.readouterr().out
    assert not [key for key in load_file(str(out)) if 'lora' in key]


def test_another_file_of_a_training_is_told_from_a_tuned_one(case, trained):
    said = run('inspect', case.full)
    assert 'a full checkpoint' in said and 'tuned.py extract' in said
    assert 'a full checkpoint' in run('apply', case.config, case.full, case.out)
    state = trained[1] / 'epoch_1.train.safetensors'
    said = run('inspect', state)
    assert 'is the training state' in said
    assert said.endswith(str(trained[1] / 'epoch_1.safetensors'))


@pytest.mark.parametrize('command', ['extract', 'apply', 'merge'])
def test_a_config_that_is_none_is_told_its_place(case, command):
    for given in ('nope.py', case.full.parent, case.full):
        said = run(command, given, case.tuned, case.out)
        assert str(given) in said
        assert f'order of the arguments is {command} CONFIG CHECK' in said


def test_a_missing_or_broken_file_is_one_message(case):
    assert run('inspect', 'gone.safetensors').startswith('tuned.py: error')
    case.tuned.write_bytes(case.tuned.read_bytes()[:-1])
    assert 'cut short' in run('inspect', case.tuned)
