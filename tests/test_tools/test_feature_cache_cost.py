"""The tool that counts a step with the feature cache."""
import pytest
from runs import ROOT, load_tool

CONFIG = str(ROOT / 'configs/glyphs/et_detr_glyphs.py')


@pytest.mark.parametrize('args, words', [
    (['gone.py'], "config 'gone.py' does not exist"),
    ([CONFIG, '--cfg-options', 'modle.num_queries=7'], 'Near it: model'),
])
def test_what_cannot_be_is_one_message(args, words):
    with pytest.raises(SystemExit) as error:
        load_tool('feature_cache_cost').main(args)
    assert str(error.value).startswith('feature_cache_cost.py: error: ')
    assert words in str(error.value)
