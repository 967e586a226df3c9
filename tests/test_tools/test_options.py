"""Options mean what mmdet's users expect, and what cannot be is one message."""
import json
import os
import re
import shutil
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmpretrain.models import ImageClassifier
from runs import (ROOT, classification_config, detection_config, load_tool,
                  save_base)
from torch.testing import assert_close

from etta_mm import save_tuned
from etta_mm.checkpoints import save_base as save_base_weights
from etta_mm.checkpoints.convert import build_model
from etta_mm.engine import options
from etta_mm.engine.launch import RANK_VARIABLES, build_runner
from etta_mm.engine.task import draw, dump_predictions, set_loaders, task_scope
from etta_mm.models import ETDeformableDETR


@pytest.fixture
def config(glyphs, tmp_path):
    return detection_config(tmp_path / 'tiny.py', glyphs)


@pytest.fixture
def checkpoint(config, tmp_path):
    path = save_base(config, tmp_path / 'epoch_3.pth')
    rest = dict(meta=dict(epoch=3), message_hub={}, optimizer={})
    torch.save(dict(torch.load(path), **rest), path)
    return path


def parse(tool: str, *args):
    return load_tool(tool).parse_args([str(arg) for arg in args])


def check_train(config, *args):
    return options.training_config(parse('train', config, *args))


def check_test(config, checkpoint, *args):
    return options.testing_config(parse('test', config, checkpoint, *args))


def test_the_work_dir_is_the_options_or_the_configs_or_named_by_the_config(
        config, glyphs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_train(config).work_dir == './work_dirs/tiny'
    named = detection_config(
        tmp_path / 'named.py', glyphs, work_dir=str(tmp_path / 'a'))
    assert check_train(named).work_dir == str(tmp_path / 'a')
    assert check_train(named, '--work-dir',
                       tmp_path / 'b').work_dir == str(tmp_path / 'b')


def test_cfg_options_override_the_config(config, tmp_path):
    cfg = check_train(config, '--work-dir', tmp_path, '--cfg-options',
                      'optim_wrapper.optimizer.lr=0.5', 'model.num_queries=7')
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.model.num_queries == 7


@pytest.mark.parametrize('option, words', [
    ('max_epochs=1', 'max_epochs is a variable .*train_cfg.max_epochs'),
    ('train_pipeline.0.type=X', 'train_pipeline is a variable'),
    ('load_form=x.pth', 'nothing of the name load_form. Near it: load_from'),
    ('qqq=1', 'nothing of the name qqq. It reads .*work_dir'),
])
def test_an_option_that_would_do_nothing_is_an_error(
        config, tmp_path, option, words):
    path = tmp_path / 'variables.py'
    path.write_text(f'_base_ = {str(config)!r}\nmax_epochs = 3\n'
                    "train_pipeline = [dict(type='X')]\n")
    with pytest.raises(ValueError, match=f'--cfg-options .*{words}'):
        check_train(path, '--work-dir', tmp_path, '--cfg-options', option)


def test_an_interval_of_zero_is_an_error(config, tmp_path):
    with pytest.raises(ValueError, match='val_interval=0.*val_evaluator to None'):
        check_train(config, '--work-dir', tmp_path, '--cfg-options',
                    'train_cfg.val_interval=0')


def test_an_option_may_set_all_that_a_run_reads(config, tmp_path):
    cfg = check_train(config, '--work-dir', tmp_path, '--cfg-options',
                      'find_unused_parameters=False', 'log_level=ERROR',
                      'randomness.seed=3', 'auto_scale_lr.base_batch_size=4')
    assert cfg.randomness.seed == 3


def test_a_config_that_does_not_exist_names_those_like_it(
        config, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(
            FileNotFoundError, match='configs/etta/et_detr_r50_coco.py'):
        check_train('configs/et_detr_r50_coc.py')
    with pytest.raises(FileNotFoundError, match=str(config)):
        check_train(config.with_name('tinyy.py'))
    with pytest.raises(FileNotFoundError, match='No name'):
        check_train('xyzzy.py')


def test_what_is_no_config_is_not_said_to_be_missing(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="'configs/glyphs' is a folder"):
        check_train('configs/glyphs')
    with pytest.raises(ValueError, match="'README.md' is no config"):
        check_train('README.md')


def test_the_tools_end_with_one_message_and_no_traceback(tmp_path):
    for tool, rest in (('train', []), ('test', ['some.pth'])):
        with pytest.raises(SystemExit) as stop:
            load_tool(tool).main([str(tmp_path / 'gone.py'), *rest])
        # A text as exit code: Python prints it and exits with 1.
        assert stop.value.code.startswith(f'{tool}.py: error: The config')


@pytest.mark.parametrize('wrong, words', [
    (dict(ffn=dict(type='LoRa', rank=2)), "no tuner 'LoRa'.*'LoRA'"),
    (dict(ffn=dict(type='LoRA', rank=0)), 'rank must be at least 1'),
    (dict(ffn=dict(type='LoRA', rank='two')), 'rank.*two'),
    (dict(attn=dict(type='ScaledPrefix', num_prefix=0)),
     'num_prefix must be at least 1'),
    (dict(train=['nek']), "'nek' matches no submodule.*neck"),
    (dict(ffn=dict(type='LoRA', rank=2), where='enkoder'), 'enkoder'),
])
def test_a_tuning_that_does_not_fit_is_one_message(wrong, words, glyphs,
                                                   tmp_path):
    path = detection_config(
        tmp_path / 'tiny.py',
        glyphs,
        model=dict(tuning=dict(wrong, _delete_=True)))
    with pytest.raises(SystemExit) as stop:
        load_tool('train').main([str(path), '--work-dir', str(tmp_path)])
    assert re.match(f'train.py: error: model: .*{words}', stop.value.code)


def test_a_base_of_another_architecture_is_one_message(glyphs, tmp_path):
    base = save_base(detection_config(tmp_path / 'base.py', glyphs),
                     tmp_path / 'base.pth')
    path = detection_config(
        tmp_path / 'tiny.py', glyphs, load_from=str(base))
    assert check_train(path, '--work-dir', tmp_path).load_from == str(base)
    with pytest.raises(ValueError, match='load_from=.*base.pth.*no checkpoint '
                       'of the base of ETDeformableDETR.*are missing'):
        check_train(path, '--work-dir', tmp_path, '--cfg-options',
                    'model.encoder.num_layers=2')


def test_what_others_raise_keeps_its_traceback(glyphs, tmp_path):
    path = detection_config(
        tmp_path / 'tiny.py', glyphs, model=dict(type='NoSuchDetector'))
    cfg = check_train(path, '--work-dir', tmp_path)
    with pytest.raises(KeyError, match='NoSuchDetector'):
        build_runner(cfg)


def test_resume_without_a_checkpoint_is_an_error(config, tmp_path):
    with pytest.raises(
            FileNotFoundError, match='--resume.*last_checkpoint.*--work-dir'):
        check_train(config, '--work-dir', tmp_path / 'empty', '--resume')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_9.pth'))
    with pytest.raises(FileNotFoundError, match='epoch_9.pth'):
        check_train(config, '--work-dir', tmp_path, '--resume')
    with pytest.raises(FileNotFoundError, match='epoch_7.pth.*--resume'):
        check_train(config, '--work-dir', tmp_path, '--resume',
                    tmp_path / 'epoch_7.pth')


def test_resume_takes_the_latest_checkpoint_or_the_one_named(
        config, checkpoint, tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
    cfg = check_train(config, '--work-dir', tmp_path, '--resume')
    assert (cfg.resume, cfg.full_from) == (True, str(checkpoint))
    other = shutil.copy(checkpoint, tmp_path / 'epoch_1.pth')
    cfg = check_train(config, '--work-dir', tmp_path, '--resume', other)
    assert (cfg.resume, cfg.full_from) == (True, str(other))
    # Without the option, the config's own load_from stays.
    cfg = check_train(config, '--work-dir', tmp_path, '--cfg-options',
                      f'load_from={other}')
    assert (cfg.resume, cfg.load_from) == (False, str(other))


def test_latest_is_that_of_the_folder_and_not_of_the_one_it_was_copied_from(
        config, checkpoint, tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
    copied = shutil.copytree(tmp_path, tmp_path.with_name('a copy'))
    cfg = check_train(config, '--work-dir', copied, '--resume')
    assert cfg.full_from == str(copied / checkpoint.name)


@pytest.mark.parametrize('absent', ['meta', 'message_hub', 'optimizer'])
def test_resume_from_what_is_no_training_is_an_error(config, checkpoint,
                                                     tmp_path, absent):
    content = torch.load(checkpoint)
    del content[absent]
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match=f'epoch_3.*it lacks {absent}.*load_'):
        check_train(config, '--work-dir', tmp_path, '--resume', checkpoint)
    check_train(config, '--work-dir', tmp_path, '--cfg-options',
                f'load_from={checkpoint}')


def of_two_classes(key, tensor):
    return tensor[:2] if 'cls_branches' in key else tensor


def without_the_head(key, tensor):
    return None if 'bbox_head' in key else tensor


@pytest.mark.parametrize('change, said', [
    (of_two_classes,
     r'another model.*cls_branches.*\[2.* there and \[36.*num_classes'),
    (without_the_head, 'epoch_3.*bbox_head')
])
@pytest.mark.parametrize('tuning', [dict(), dict(tuning=None)],
                         ids=['tuned', 'untuned'])
def test_a_checkpoint_of_another_head_is_neither_tested_nor_resumed(
        glyphs, tmp_path, tuning, change, said):
    path = detection_config(tmp_path / 'tiny.py', glyphs, model=tuning)
    checkpoint = save_base(path, tmp_path / 'epoch_3.pth')
    content = torch.load(checkpoint)
    state = {k: change(k, t) for k, t in content['state_dict'].items()}
    content['state_dict'] = {k: t for k, t in state.items() if t is not None}
    torch.save(dict(content, meta={}, message_hub={}, optimizer={}), checkpoint)
    with pytest.raises(ValueError, match=said):
        check_test(path, checkpoint, '--work-dir', tmp_path)
    with pytest.raises(ValueError, match=said):
        check_train(path, '--work-dir', tmp_path, '--resume', checkpoint)
    if change is of_two_classes:  # as a base it will do: its head is another
        check_train(path, '--work-dir', tmp_path, '--cfg-options',
                    f'load_from={checkpoint}')


def test_a_sharded_checkpoint_is_left_to_the_processes_that_read_it(
        config, tmp_path):
    (tmp_path / 'epoch_3.pth').mkdir()
    cfg = check_train(config, '--work-dir', tmp_path, '--resume',
                      tmp_path / 'epoch_3.pth')
    assert cfg.resume and cfg.full_from == str(tmp_path / 'epoch_3.pth')


def test_a_tuned_model_is_not_tested_without_its_tuners(glyphs, tmp_path):
    path = detection_config(tmp_path / 'tiny.py', glyphs)
    model = build_model(Config.fromfile(path))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'full.pth')
    check_test(path, tmp_path / 'full.pth', '--work-dir', tmp_path)
    with pytest.raises(ValueError, match='tensors of tuners.*no place'):
        check_test(path, tmp_path / 'full.pth', '--work-dir', tmp_path,
                   '--cfg-options', 'model.tuning=None')


def test_a_config_that_says_resume_goes_on_or_starts_from_its_base(
        config, checkpoint, tmp_path, capsys):
    base = shutil.copy(checkpoint, tmp_path / 'base.pth')
    work_dir = tmp_path / 'run'
    args = (config, '--work-dir', work_dir, '--cfg-options', 'resume=True',
            f'load_from={base}')
    cfg = check_train(*args)
    assert (cfg.resume, cfg.load_from) == (False, str(base))
    line, = (line for line in capsys.readouterr().out.splitlines()
             if 'resume' in line)
    assert re.search('no last_checkpoint.*starts from.*base.pth', line)
    (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    cfg = check_train(*args)
    assert (cfg.resume, cfg.full_from) == (True, str(checkpoint))
    # The option is more than the config, and a name more than a yes.
    other = shutil.copy(checkpoint, tmp_path / 'epoch_1.pth')
    cfg = check_train(*args, '--resume', other)
    assert (cfg.resume, cfg.full_from) == (True, str(other))
    cfg = check_train(*args, f'resume={other}')
    assert (cfg.resume, cfg.full_from) == (True, str(other))


def test_the_base_of_a_config_stays_where_another_checkpoint_is_loaded(
        config, checkpoint, tmp_path):
    base = shutil.copy(checkpoint, tmp_path / 'base.pth')
    start = ['--work-dir', tmp_path / 'run', '--cfg-options',
             f'load_from={base}']
    for cfg in (check_train(config, '--resume', checkpoint, *start),
                check_test(config, checkpoint, *start)):
        runner = build_runner(cfg)
        assert runner._load_from == str(checkpoint)
        written = Config.fromfile(tmp_path / 'run' / config.name)
        assert written.load_from == str(base) and 'full_from' not in written


def test_options_may_add_imports(config, tmp_path, monkeypatch):
    (tmp_path / 'an_import_of_mine.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    check_train(config, '--work-dir', tmp_path, '--cfg-options',
                'custom_imports.imports=[etta_mm,an_import_of_mine]')
    assert 'an_import_of_mine' in sys.modules


@pytest.mark.parametrize('launcher', RANK_VARIABLES)
def test_every_launcher_tells_the_local_rank(config, tmp_path, monkeypatch,
                                             launcher):
    monkeypatch.setenv('LOCAL_RANK', '0')
    for name, value in zip(RANK_VARIABLES[launcher], '535'):
        monkeypatch.setenv(name, value)
    check_train(config, '--work-dir', tmp_path, '--launcher', launcher)
    assert os.environ['LOCAL_RANK'] == '3'


def test_a_model_with_test_time_augmentation_is_tested(glyphs, tmp_path):
    """The config as mmpretrain's own tool makes it of --tta."""
    plain = classification_config(tmp_path / 'plain.py', glyphs)
    checkpoint = save_base(plain, tmp_path / 'epoch_1.pth')
    model = Config.fromfile(plain).model.to_dict()
    path = classification_config(
        tmp_path / 'tta.py', glyphs, load_from=str(checkpoint),
        model=dict(_delete_=True, type='AverageClsScoreTTA', module=model))
    check_test(path, checkpoint, '--work-dir', tmp_path)
    model = build_model(Config.fromfile(plain))
    model.load_state_dict(torch.load(checkpoint)['state_dict'], strict=False)
    tuned = save_tuned(model, tmp_path / 'tuned.safetensors')
    runner = build_runner(check_test(path, tuned, '--work-dir', tmp_path))
    assert_close(runner.model.module.state_dict(), model.state_dict())


def test_resume_from_weights_alone_is_an_error(config, tmp_path):
    path = tmp_path / 'epoch_1.safetensors'
    with pytest.raises(FileNotFoundError, match='epoch_1.safetensors'):
        check_train(config, '--resume', path)
    save_tuned(build_model(Config.fromfile(config)), path)
    with pytest.raises(ValueError, match='weights only.*optimizer'):
        check_train(config, '--resume', path)


def test_load_from_that_does_not_exist_is_an_error(config, tmp_path):
    with pytest.raises(FileNotFoundError, match='base.pth.*load_from'):
        check_train(config, '--work-dir', tmp_path, '--cfg-options',
                    f'load_from={tmp_path}/base.pth')


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a CPU only')
def test_amp_without_a_gpu_is_an_error(config, tmp_path):
    for given in (['--amp'],
                  ['--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'],
                  ['--cfg-options',
                   'optim_wrapper.type=mmengine.AmpOptimWrapper']):
        with pytest.raises(ValueError, match="--amp.*'cpu'.*cuda"):
            check_train(config, '--work-dir', tmp_path, *given)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a CPU only')
def test_a_wrapper_may_be_named_by_its_class(config):
    cfg = Config.fromfile(config)
    cfg.optim_wrapper.type = AmpOptimWrapper
    with pytest.raises(ValueError, match="--amp.*'cpu'.*cuda"):
        options._set_precision(cfg, amp=False)


@pytest.mark.parametrize('model, scope', [
    (ETDeformableDETR, 'mmdet'), ('mmdet.DETR', 'mmdet'),
    (ImageClassifier, 'mmpretrain'), ('NoSuchModel', None), (None, None)
])
def test_a_config_without_a_scope_has_that_of_its_model(model, scope):
    cfg = Config(dict(
        default_scope=None, model=dict(type=model), train_dataloader=dict(),
        test_evaluator=[]))
    assert task_scope(cfg) == scope
    set_loaders(cfg)
    assert ('collate_fn' in cfg.train_dataloader) == (scope == 'mmpretrain')
    dump_predictions(cfg, 'a.pkl')
    assert (cfg.test_evaluator[0].type == 'mmdet.DumpDetResults') == (
        scope == 'mmdet')
    cfg.default_scope = 'mmrotate'
    assert task_scope(cfg) == 'mmrotate'


def test_amp_with_a_gpu_scales_the_loss(config, tmp_path, monkeypatch):
    monkeypatch.setattr('etta_mm.engine.options.get_device', lambda: 'cuda')
    cfg = check_train(config, '--work-dir', tmp_path, '--amp')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'


def test_auto_scale_lr_needs_the_batch_size_it_was_meant_for(config, tmp_path):
    cfg = check_train(config, '--work-dir', tmp_path, '--auto-scale-lr')
    assert cfg.auto_scale_lr.enable is True
    with pytest.raises(ValueError, match='--auto-scale-lr.*base_batch_size'):
        check_train(config, '--work-dir', tmp_path, '--auto-scale-lr',
                    '--cfg-options', 'auto_scale_lr={}')


def test_a_work_dir_that_cannot_be_written_is_an_error(config):
    with pytest.raises(ValueError, match='work_dir .*cannot be written'):
        check_train(config, '--work-dir', config / 'below_a_file')


def test_bad_data_of_each_split_is_found_by_the_tool_that_reads_it(
        config, checkpoint, glyphs, tmp_path):
    annotations = glyphs / 'detection/printed/annotations'
    for run, split in ((check_train, 'train'), (check_test, 'test')):
        args = (config, ) if run is check_train else (config, checkpoint)
        with pytest.raises(
                FileNotFoundError, match=f'{split}_dataloader.dataset'):
            run(*args, '--work-dir', tmp_path, '--cfg-options',
                f'{split}_dataloader.dataset.ann_file=gone.json')
    with pytest.raises(FileNotFoundError, match='test_evaluator'):
        check_test(config, checkpoint, '--work-dir', tmp_path, '--cfg-options',
                   'test_evaluator.ann_file=gone.json')
    for run, split, other in ((check_train, 'val', 'train'),
                              (check_test, 'test', 'val')):
        args = (config, ) if run is check_train else (config, checkpoint)
        with pytest.raises(
                ValueError, match=f'{split}_evaluator.*{other}.json.*Set'):
            run(*args, '--work-dir', tmp_path, '--cfg-options',
                f'{split}_evaluator.ann_file={annotations / other}.json')
        with pytest.raises(
                ValueError, match='36 classes.*bbox_head.num_classes is 7'):
            run(*args, '--work-dir', tmp_path, '--cfg-options',
                'model.bbox_head.num_classes=7')
    # Training does not read the test set.
    check_train(config, '--work-dir', tmp_path, '--cfg-options',
                'test_dataloader.dataset.ann_file=gone.json')


def test_each_annotation_file_is_read_once(config, tmp_path, monkeypatch):
    load, read = json.load, []
    monkeypatch.setattr(
        json, 'load', lambda file: read.append(file.name) or load(file))
    cfg = check_train(config, '--work-dir', tmp_path)
    assert cfg.val_evaluator.type.endswith('CocoMetric')
    assert sorted(read) == sorted(
        os.path.join(loader.dataset.data_root, loader.dataset.ann_file)
        for loader in (cfg.train_dataloader, cfg.val_dataloader))


def test_only_the_first_process_of_a_machine_checks_the_data(
        config, tmp_path, monkeypatch):
    bad = [
        config, '--work-dir', tmp_path, '--launcher', 'pytorch',
        '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'
    ]
    for name, value in dict(RANK='1', LOCAL_RANK='1', WORLD_SIZE='2').items():
        monkeypatch.setenv(name, value)
    assert check_train(*bad).launcher == 'pytorch'
    monkeypatch.setenv('LOCAL_RANK', '0')  # rank 1, on a machine of its own
    with pytest.raises(FileNotFoundError):
        check_train(*bad)


def test_a_launcher_that_has_not_started_the_process_is_an_error(
        config, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match='RANK, WORLD_SIZE.*dist_train.sh'):
        check_train(config, '--launcher', 'pytorch')


def test_a_checkpoint_that_does_not_exist_is_an_error(config, checkpoint):
    with pytest.raises(FileNotFoundError, match='epoch_2.pth.*epoch_3.pth'):
        check_test(config, checkpoint.with_name('epoch_2.pth'))


def test_testing_takes_the_checkpoint_and_never_resumes(
        config, checkpoint, tmp_path):
    cfg = check_test(config, checkpoint, '--work-dir', tmp_path,
                     '--cfg-options', 'resume=True', 'load_from=base.pth')
    assert (cfg.resume, cfg.full_from) == (False, str(checkpoint))


def test_out_must_be_a_pickle(config, checkpoint, tmp_path):
    with pytest.raises(ValueError, match='--out.*pkl'):
        check_test(config, checkpoint, '--work-dir', tmp_path, '--out',
                   'a.json')
    with pytest.raises(ValueError, match='--out.*cannot be written'):
        check_test(config, checkpoint, '--work-dir', tmp_path, '--out',
                   config / 'a.pkl')


def test_out_adds_a_dump_to_whatever_evaluator_there_is(
        config, checkpoint, tmp_path):
    out = tmp_path / 'a.pkl'
    args = (config, checkpoint, '--work-dir', tmp_path, '--out', out)
    dump = dict(type='mmdet.DumpDetResults', out_file_path=str(out))
    one, two = check_test(*args).test_evaluator
    assert (one.type, two) == ('CocoMetric', dump)
    assert check_test(*args, '--cfg-options',
                      'test_evaluator=[]').test_evaluator == [dump]
    cfg = Config(dict(test_evaluator=dict(metrics=dict(type='Accuracy')),
                      default_scope='mmdet'))
    dump_predictions(cfg, str(out))
    assert cfg.test_evaluator.metrics == [dict(type='Accuracy'), dump]


def test_what_is_retrieved_may_be_of_other_classes(glyphs, tmp_path):
    for letter in 'ab':
        (tmp_path / 'val' / letter).mkdir(parents=True)
        (tmp_path / 'val' / letter / '1.jpg').touch()
    cfg = Config.fromfile(classification_config(tmp_path / 'a.py', glyphs))
    cfg.val_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path / 'val'))
    config = tmp_path / 'others.py'
    cfg.dump(config)
    with pytest.raises(ValueError, match='has 2 classes'):
        check_train(config, '--work-dir', tmp_path)
    cfg.model.prototype = dict(type='any')  # as of an ImageToImageRetriever
    options._check_data(cfg, 'train', 'val')
    cfg.model.head.num_classes = 7
    with pytest.raises(ValueError, match='num_classes is 7'):
        options._check_data(cfg, 'train', 'val')


def test_mixed_labels_need_the_number_of_classes(glyphs, tmp_path):
    mixup = dict(_delete_=True, augments=dict(type='Mixup', alpha=0.8))
    config = classification_config(
        tmp_path / 'mixup.py', glyphs, model=dict(train_cfg=mixup))
    check_train(config, '--work-dir', tmp_path)
    with pytest.raises(ValueError, match='Set data_preprocessor.num_classes=36'):
        check_train(config, '--work-dir', tmp_path, '--cfg-options',
                    'data_preprocessor.num_classes=1000')


def test_showing_turns_on_the_hook_of_either_library(config, checkpoint,
                                                     glyphs, tmp_path):
    rest = ('--work-dir', tmp_path, '--show', '--show-dir', 'a', '--wait-time',
            '3')
    hook = check_test(config, checkpoint, *rest).default_hooks.visualization
    assert (hook.draw, hook.test_out_dir, hook.show,
            hook.wait_time) == (True, 'a', True, 3)
    config = classification_config(tmp_path / 'classifier.py', glyphs)
    checkpoint = save_base(config, tmp_path / 'epoch_4.pth')
    hook = check_test(config, checkpoint, *rest).default_hooks.visualization
    assert (hook.enable, hook.out_dir, hook.show,
            hook.wait_time) == (True, 'a', True, 3)
    with pytest.raises(ValueError, match='--show.*VisualizationHook'):
        check_test(config, checkpoint, *rest, '--cfg-options',
                   'default_hooks.visualization=None')


def test_batches_of_a_classifier_are_collated(glyphs, tmp_path):
    config = classification_config(tmp_path / 'classifier.py', glyphs)
    cfg = check_train(config, '--work-dir', tmp_path, '--cfg-options',
                      'train_dataloader.num_workers=1')
    assert cfg.train_dataloader.collate_fn == dict(type='default_collate')
    # The config says False, and says nothing here.
    assert cfg.train_dataloader.persistent_workers is False
    assert cfg.train_dataloader.pin_memory is torch.cuda.is_available()


def test_a_tuned_checkpoint_goes_on_top_of_its_base(config, tmp_path):
    base = save_base(config, tmp_path / 'base.pth')
    start = ['--work-dir', tmp_path, '--cfg-options', f'load_from={base}']
    runner = build_runner(check_train(config, *start))
    runner.load_or_resume()
    with torch.no_grad():
        for parameter in runner.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    tuned = save_tuned(runner.model, tmp_path / 'tuned.safetensors')
    cfg = check_test(config, tuned, *start)
    assert cfg.load_from == str(base)
    loaded = build_runner(cfg).model.state_dict()
    for name, weight in runner.model.state_dict().items():
        assert torch.equal(loaded[name], weight), name


def test_a_tuned_checkpoint_is_of_one_run_and_not_of_the_config(
        glyphs, config, checkpoint, tmp_path):
    runner = build_runner(check_train(config, '--work-dir', tmp_path / 'a'))
    runner.model.init_weights()
    tuned = save_tuned(runner.model, tmp_path / 'tuned.safetensors')
    base = save_base_weights(runner.model, tmp_path / 'b.safetensors',
                             torch.float)
    start = ['--work-dir', tmp_path / 'run', '--cfg-options',
             f'load_from={base}']
    cfg = check_test(config, tuned, *start)
    build_runner(cfg)
    assert cfg.tuned_from == str(tuned)
    written = tmp_path / 'run' / config.name
    assert written.is_file() and 'tuned_from' not in written.read_text()
    # Nor is it taken from a config that an older version has written.
    old = detection_config(
        tmp_path / 'old.py', glyphs, tuned_from=str(tmp_path / 'old.pth'))
    assert 'tuned_from' not in check_train(old, *start)
    assert 'tuned_from' not in check_test(old, checkpoint, *start)


def test_a_base_in_safetensors_is_tested_as_it_is(config, tmp_path):
    runner = build_runner(check_train(config, '--work-dir', tmp_path))
    path = save_base_weights(runner.model, tmp_path / 'base.safetensors')
    cfg = check_test(config, path, '--work-dir', tmp_path)
    assert cfg.full_from == str(path) and 'tuned_from' not in cfg


def test_a_broken_safetensors_file_is_an_error(config, tmp_path):
    broken = tmp_path / 'tuned.safetensors'
    broken.write_bytes(b'0123456789')
    with pytest.raises(ValueError, match='tuned.safetensors.*intact'):
        check_test(config, broken, '--work-dir', tmp_path)


@pytest.mark.parametrize('number, is_set', [(80, False), (81, True)])
def test_each_class_has_a_colour_where_it_is_drawn(config, number, is_set):
    """COCO's palette, which all of its kind inherit, has 80."""
    cfg = Config.fromfile(config)
    dataset = cfg.test_dataloader.dataset
    names = tuple(f'class {i}' for i in range(number))
    dataset.metainfo = dict(classes=names)
    draw(cfg, show=False, show_dir='drawn', wait_time=0)
    assert dataset.metainfo.classes == names
    assert len(dataset.metainfo.get('palette', ())) == is_set * number
