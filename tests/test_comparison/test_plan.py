"""What a plan may say, and the settings that come of it."""
import re
import shlex
from pathlib import Path

import pytest
from fakes import TWO, make_checkout, write_plan
from mmengine.config import Config, DictAction

from etta_mm.comparison import Comparison, Run, read_plan, resolve
from etta_mm.comparison.results import unit
from etta_mm.comparison.settings import file_hash, stack
from etta_mm.engine import build_on_meta, count_parameters

ROOT = Path(__file__).resolve().parents[2]
FAKE = 'configs/fake.py'


@pytest.mark.parametrize('values, error, message', [
    (dict(metrics='a'), KeyError, 'the plan has no key metrics'),
    (dict(seeds=[]), TypeError, 'seeds=[] must be a list of int'),
    (dict(seeds='012'), TypeError, "seeds='012' must be a list of int"),
    (dict(epochs=0), ValueError, 'epochs=0 must be an integer of at least 1'),
    (dict(methods=[dict(name='A')]), KeyError, 'a method needs config'),
    (dict(methods=[TWO[0], TWO[0]]), ValueError, 'two methods have one name'),
    (dict(methods=[dict(name='A', config='configs/fke.py')]),
     FileNotFoundError, "'configs/fke.py' of the method 'A' does not exist; "
     'near it: configs/fake.py'),
    (dict(methods=[dict(name='A', config=FAKE, lr='1e-3')]), TypeError,
     'a learning rate is a number, not str'),
    (dict(methods=[dict(name='A', config=FAKE, lr=[1, 1])]), ValueError,
     'a candidate stands twice'),
    (dict(methods=[dict(name='A', config=FAKE, budgets=[dict(size=1)])]),
     KeyError, "a budget of 'A' has no key size"),
    (dict(methods=[dict(name='A', config=FAKE, budgets=[{}, {}])]),
     ValueError, "two budgets of 'A' have the same options"),
])
def test_a_wrong_plan_is_told_what_is_allowed(root, values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        read_plan(write_plan(root, **values), root)


def test_a_missing_plan_is_told_what_lies_beside_it(root):
    write_plan(root)
    with pytest.raises(FileNotFoundError, match='beside it: .*plan.py'):
        read_plan(root / 'configs/plam.py', root)


def test_options_that_do_not_fit_the_config_are_refused(root):
    methods = [dict(name='A', config=FAKE, options={'model.type.x': 1})]
    plan = read_plan(write_plan(root, methods=methods), root)
    with pytest.raises(ValueError, match="options of 'A' do not fit"):
        resolve(plan, Run(plan.points[0], None, 0), root)


def test_checkpoints_in_another_folder_are_refused_before_any_work(root):
    key = 'default_hooks.checkpoint.out_dir'
    plan = read_plan(write_plan(root, options={key: 'elsewhere'}), root)
    with pytest.raises(ValueError, match=f"{key}='elsewhere' of 'A': .*None"):
        Comparison(plan, root, 'work', 'out')
    assert not (root / 'work').exists()
    plan = read_plan(write_plan(root, options={key: None}), root)
    Comparison(plan, root, 'work', 'out')


def test_quick_without_its_section_is_refused(root):
    with pytest.raises(KeyError, match='the plan has no quick=dict'):
        read_plan(write_plan(root), root, quick=True)


def test_quick_keeps_what_its_section_names(root):
    quick = dict(methods=['A'], seeds=[1], epochs=1, search=False)
    plan = read_plan(write_plan(root, quick=quick), root, quick=True)
    assert (plan.name, plan.seeds) == ('plan_quick', [1])
    assert [(p.method, p.rates) for p in plan.points] == [('A', (3e-3, ))]
    cfg = resolve(plan, Run(plan.points[0], 3e-3, 1), root).cfg
    assert plan.points[0].rates == (3e-3, )
    assert cfg.train_cfg.max_epochs == 1


@pytest.mark.parametrize('train_cfg, by_epoch', [
    (dict(max_epochs=2), True),
    (dict(_delete_=True, by_epoch=False, max_iters=9), False)])
@pytest.mark.parametrize('hook', [None, dict(
    type='LoggerHook', log_metric_by_epoch=False)])
def test_validations_are_logged_by_what_the_training_counts(
        root, train_cfg, by_epoch, hook):
    """Else all those of a training by iterations are of epoch 0."""
    options = {'train_cfg': train_cfg}
    if hook is not None:
        options['default_hooks.logger'] = hook
    plan = read_plan(write_plan(root, methods=TWO[1:], options=options), root)
    settings = resolve(plan, Run(plan.points[0], 1e-3, 0), root)
    logger = (settings.cfg.get('default_hooks') or {}).get('logger') or {}
    assert logger.get('log_metric_by_epoch', True) == by_epoch
    assert not logger or logger['type'] == 'LoggerHook'
    rows = [dict(options=settings.options)]
    assert unit(rows) == ('epochs' if by_epoch else 'iterations')


def test_epochs_shorten_the_schedules_that_last_as_long(root):
    plan = read_plan(write_plan(root, epochs=5), root)
    cfg = resolve(plan, Run(plan.points[0], 1e-3, 7), root).cfg
    assert cfg.train_cfg.max_epochs == 5
    assert (cfg.param_scheduler[1].T_max, cfg.param_scheduler[1].end) == (5, 5)
    assert cfg.param_scheduler[0].end == 2  # counts iterations
    assert (cfg.optim_wrapper.optimizer.lr, cfg.randomness.seed) == (1e-3, 7)


@pytest.mark.parametrize('where', ['load_from', 'model.init_cfg'])
def test_other_base_weights_make_another_run(root, where):
    weights = root / 'base.safetensors'
    plan = read_plan(
        write_plan(root, options={
            where: weights.name if where == 'load_from' else dict(
                type='Pretrained', checkpoint=weights.name)}), root)
    hashes = []
    for content in (b'1', b'2'):
        weights.write_bytes(content)
        file_hash.cache_clear()
        hashes.append(resolve(plan, Run(plan.points[0], 1e-3, 0), root).hash)
    assert hashes[0] != hashes[1]


def test_later_options_go_over_earlier_ones():
    first = {'a': dict(_delete_=True, b=dict(c=1, d=2)), 'e.f': 3}
    assert stack(first, {'a.b.c': 4}) == {
        'a._delete_': True, 'a.b.d': 2, 'e.f': 3, 'a.b.c': 4}
    assert stack(first, dict(a=dict(_delete_=True, g=5))) == {
        'e.f': 3, 'a._delete_': True, 'a.g': 5}
    assert stack(first, {'a.b': None}) == {
        'a._delete_': True, 'e.f': 3, 'a.b': None}
    assert stack(dict(a=None), {'a.b': 6}) == {'a._delete_': True, 'a.b': 6}


@pytest.mark.parametrize('name', ['vit_rivals', 'vit_prefix'])
def test_the_command_of_a_row_makes_the_same_settings(name):
    import argparse
    plan = read_plan(ROOT / f'configs/comparison/{name}.py', ROOT)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    for point in plan.points[:3]:
        settings = resolve(plan, Run(point, point.rates[0], 1), ROOT)
        words = shlex.split(settings.command(point.config, 'work'))
        assert words[:2] == ['python', 'tools/train.py']
        cfg = Config.fromfile(ROOT / words[2])
        cfg.merge_from_dict(parser.parse_args(words[3:]).cfg_options)
        assert cfg.to_dict() == settings.cfg.to_dict()


def test_a_command_names_the_written_config_where_options_are_no_words(root):
    options = {'behaviour.list': [dict(a=1)]}
    plan = read_plan(write_plan(root, options=options), root)
    settings = resolve(plan, Run(plan.points[0], 1e-3, 0), root)
    assert settings.command(FAKE, 'work/x') == (
        'python tools/train.py work/x/config.py')
    written = Config.fromfile(settings.write(root / 'config.py'))
    assert written.to_dict() == settings.cfg.to_dict()


def percents(name: str) -> dict:
    plan = read_plan(ROOT / f'configs/comparison/{name}.py', ROOT)
    return {
        (point.method, point.budget): count_parameters(
            build_on_meta(resolve(plan, Run(point, 1e-3, 0),
                                  ROOT).cfg)).percent
        for point in plan.points
    }


@pytest.mark.parametrize('name, least', [
    ('vit_rivals', 'head only'),
    ('detr_rivals', 'head only'),
    ('deformable_detr_rivals', 'no tuners'),
])
def test_the_rivals_train_as_much_as_etta(name, least):
    trained = percents(name)
    assert trained.pop(('full fine-tuning', 0)) == 100
    etta = trained['ETTA', 0]
    assert trained.pop((least, 0)) < 0.6 * etta
    assert len(trained) == (6 if name == 'deformable_detr_rivals' else 10)
    for method, percent in trained.items():
        assert abs(percent - etta) < 0.2, method


@pytest.mark.parametrize(
    'name', ['vit_defaults', 'vit_placement', 'vit_split', 'detr_where', 'detr_gap',
             'deformable_detr_gap'])
def test_every_method_of_a_plan_trains_a_small_share(name):
    for (method, budget), percent in percents(name).items():
        if method != 'full fine-tuning':
            assert 0 < percent < 10, (method, budget)


def test_the_prefixes_train_the_budgets_that_their_plan_names():
    trained = percents('vit_prefix')
    for method in ('standard prefix', 'scaled prefix'):
        for budget, wanted in enumerate((1, 2, 7, 10)):
            assert abs(trained[method, budget] - wanted) < 0.05


def test_the_folder_of_the_checkout_is_no_setting(tmp_path):
    hashes = set()
    for name in ('a', 'müller'):
        root = make_checkout(tmp_path / name)
        options = {'train_dataloader.root': str(root / 'data')}
        plan = read_plan(write_plan(root, options=options), root)
        run = Run(plan.points[0], 1e-3, 0)
        hashes.add(resolve(plan, run, root).hash)
    assert len(hashes) == 1
