"""A run formats its config once, and writes what mmengine would."""
import copy
import pickle

import pytest
import trainer
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from yapf.yapflib import yapf_api

from etta_mm.engine.run_config import RunConfig


@pytest.fixture
def formatted(monkeypatch):
    """The texts that yapf is given."""
    texts, format_code = [], yapf_api.FormatCode
    monkeypatch.setattr(
        yapf_api, 'FormatCode',
        lambda text, **kw: texts.append(text) or format_code(text, **kw))
    return texts


def test_a_training_formats_its_config_once(formatted, tmp_path):
    base = trainer.base(tmp_path)
    work_dir = tmp_path / 'run'
    runner = trainer.train(work_dir, base, 2)
    assert len(formatted) == 1
    expected = Config(runner.cfg.to_dict()).pretty_text
    saved = CheckpointLoader.load_checkpoint(str(work_dir / 'epoch_2.pth'))
    assert saved['meta']['cfg'] == expected
    dumped, = work_dir.glob('*.py')
    assert dumped.read_text() == expected
    assert next(work_dir.glob('*/vis_data/config.py')).read_text() == expected


def test_the_text_is_mmengines_and_follows_every_change(formatted):
    plain = Config(dict(
        model=dict(tuning=dict(
            ffn=dict(bottleneck_dims=4), attn=dict(num_prefix=2))),
        train_cfg=dict(max_epochs=2),
        custom_hooks=[dict(type='ParameterReportHook')]))
    cfg = RunConfig.of(plain)
    changes = [
        lambda c: None,
        lambda c: c.model.tuning.ffn.update(bottleneck_dims=7),
        lambda c: c.pop('train_cfg'),
        lambda c: setattr(c, 'work_dir', 'elsewhere'),
        lambda c: c.merge_from_dict({'model.tuning.attn.num_prefix': 9}),
        lambda c: c.custom_hooks.append(dict(type='EMAHook')),
    ]
    for number, change in enumerate(changes):
        change(plain), change(cfg)
        formatted.clear()
        assert cfg.pretty_text == cfg.dump() == plain.pretty_text, number
        assert len(formatted) == 2, number  # one of them by mmengine


def test_copies_are_of_its_kind_and_apart():
    plain = Config(dict(a=dict(b=[1, 2])), filename=__file__)
    cfg = RunConfig.of(plain)
    assert cfg.filename == __file__ and type(plain) is Config
    text = cfg.pretty_text
    for twin in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert type(twin) is RunConfig and twin.pretty_text == text
        twin.a.b.append(3)
        assert cfg.pretty_text == text == plain.pretty_text != twin.pretty_text
    plain.a.b.append(4)
    assert cfg.pretty_text == text
