"""Folded batch norms: the same output, the same checkpoint, at any time."""
import copy
import pickle

import pytest
import torch
from hosts import (HOSTS, classifier_config, output, randomise, train_steps,
                   zoo)
from mmcv.cnn import ConvModule
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from mmdet.models import ResNet
from mmdet.registry import MODELS as MMDET
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.testing import assert_close

from etta_mm import apply_tuning, load_tuned, save_tuned
from etta_mm.layers import fold_frozen_norms
from etta_mm.layers.folding import FoldedConv2d, FoldedNorm
from etta_mm.layers.frozen import FrozenBatchNorm2d, freeze_statistics

CLOSE = dict(rtol=1e-5, atol=1e-5)
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=4), train=['bbox_head'])
IMAGES = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def resnet(depth: int = 50, **kwargs) -> nn.Module:
    """A small ResNet with frozen random norms, unfolded."""
    model = ResNet(depth, base_channels=4, **kwargs)
    randomise(model)
    for module in model.modules():
        freeze_statistics(module)
    return model.requires_grad_(False)


def folded(model: nn.Module, **kwargs) -> nn.Module:
    model = copy.deepcopy(model)
    fold_frozen_norms(model, **kwargs)
    return model


def num_folded(model: nn.Module) -> int:
    """Pairs that are computed together at this moment."""
    return sum(
        isinstance(m, FoldedConv2d) and m.pair.product(m) is not None
        for m in model.modules())


def host(**kwargs) -> nn.Module:
    cfg = dict(HOSTS['detr'].config(), **{'tuning': TUNING, **kwargs})
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MMDET.build(cfg)
    randomise(model)
    return model


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(
    'kwargs', [
        dict(depth=18),
        dict(depth=50),
        dict(depth=50, style='caffe'),
        dict(depth=18, deep_stem=True, avg_down=True)
    ],
    ids=['basic', 'bottleneck', 'caffe', 'deep_stem'])
def test_every_norm_of_a_resnet_is_folded_and_the_output_stays(
        kwargs, channels_last):
    plain = resnet(**kwargs)
    ours = folded(plain, channels_last=channels_last)
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    assert num_folded(ours) == len(norms) > 0
    outputs = ours(IMAGES)
    assert_close(outputs, plain(IMAGES), **CLOSE)
    for out in outputs:
        assert channels_last == out.is_contiguous(
            memory_format=torch.channels_last)


class ReadingMemory(nn.Module):
    """A backbone, and an op of mmcv on what it returns."""

    def __init__(self, op: nn.Module, run) -> None:
        super().__init__()
        self.backbone, self.op, self.run = resnet(out_indices=(0, )), op, run

    def forward(self, x):
        return self.run(self.op, self.backbone(x)[0])


@pytest.mark.parametrize('model', [
    ReadingMemory(
        RoIAlign(3), lambda op, x: op(x, torch.tensor([[1., 0, 0, 9, 7]]))),
    ReadingMemory(ModulatedDeformConv2dPack(16, 4, 3), lambda op, x: op(x)),
], ids=['roi_align', 'deformable_convolution'])
def test_ops_that_read_memory_as_it_lies_get_it_in_order(model):
    randomise(model)
    expected = model.requires_grad_(False).eval()(IMAGES)
    twin = folded(model)
    assert num_folded(twin) == num_folded(folded(model.backbone)) > 0
    assert_close(twin(IMAGES), expected, **CLOSE)


def test_the_norms_themselves_do_nothing_when_folded():
    model = folded(resnet())
    calls = []
    for module in model.modules():
        if isinstance(module, FoldedNorm):
            module.register_forward_hook(lambda m, args, out: calls.append(
                out.data_ptr() == args[0].data_ptr()))
    model(IMAGES)
    assert calls and all(calls)


def test_a_tuned_host_folds_and_a_switch_leaves_it():
    assert num_folded(host()) == 20
    assert num_folded(host(fold_norms=False)) == 0
    batch = HOSTS['detr'].batch()
    assert_close(
        output(host(), batch), output(host(fold_norms=False), batch), **CLOSE)


def test_the_convolutional_stem_of_a_vit_is_folded():
    cfg = classifier_config(
        type='ETVisionTransformer',
        patch_cfg=dict(conv_type='ConvStem'),
        tuning=dict(ffn=TUNING['ffn']))
    assert num_folded(MMPRETRAIN.build(cfg)) == 3  # patches of 8


def test_a_conv_module_is_folded_only_where_the_norm_follows():
    for order, number in ((('conv', 'norm', 'act'), 1),
                          (('norm', 'conv', 'act'), 0)):
        plain = ConvModule(3, 3, 3, norm_cfg=dict(type='BN'), order=order)
        randomise(plain)
        freeze_statistics(plain.norm)
        plain.requires_grad_(False)
        ours = folded(plain)
        assert num_folded(ours) == number
        assert_close(ours(IMAGES), plain(IMAGES), **CLOSE)


def test_names_and_values_are_those_of_the_unfolded_model():
    plain = resnet()
    ours = folded(plain)
    ours(IMAGES)
    state = plain.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert_close(dict(ours.state_dict()), dict(state), rtol=0, atol=0)


def test_a_tuned_checkpoint_fits_the_base_folded_or_not(tmp_path):
    batch = HOSTS['detr'].batch()
    ours, plain = host(), host(fold_norms=False)
    output(ours, batch)
    path = save_tuned(ours, tmp_path / 'folded.safetensors')
    load_tuned(plain, path)  # compares the fingerprints of the bases
    load_tuned(host(), save_tuned(plain, tmp_path / 'plain.safetensors'))


def test_weights_loaded_after_the_first_forward_are_used():
    other = resnet()
    randomise(other, seed=1)
    model = folded(resnet())
    model(IMAGES)
    model.load_state_dict(other.state_dict())
    assert_close(model(IMAGES), other(IMAGES), **CLOSE)


def test_one_changed_statistic_is_used():
    plain = resnet()
    model = folded(plain)
    model(IMAGES)
    for each in (plain, model):
        each.layer1[0].norm2.running_mean.add_(1.)
    assert_close(model(IMAGES), plain(IMAGES), **CLOSE)


def test_weights_written_past_autograd_are_used_after_a_change_of_mode():
    # mmengine's EMAHook swaps p.data, then the loop calls eval() or train().
    plain = resnet()
    model = folded(plain)
    model(IMAGES)
    for each in (plain, model):
        each.conv1.weight.data.mul_(2.)
    model.eval()
    assert_close(model(IMAGES), plain(IMAGES), **CLOSE)


def test_a_conversion_there_and_back_leaves_no_old_product():
    model = folded(resnet())
    model(IMAGES)
    model.half().float()
    assert model.conv1.pair._product is None  # be the address the same
    plain = resnet().half().float()
    assert_close(model(IMAGES), plain(IMAGES), **CLOSE)
    assert_close(
        model.double()(IMAGES.double()), plain.double()(IMAGES.double()))


def test_a_copy_uses_its_own_weights():
    model = folded(resnet())
    before = model(IMAGES)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.conv1.pair._product is None  # its size is not copied
        assert num_folded(again) == num_folded(model)
        assert_close(again(IMAGES), before)
        randomise(again, seed=1)
        assert not torch.equal(again(IMAGES)[-1], before[-1])
    assert_close(model(IMAGES), before, rtol=0, atol=0)


def test_a_pair_that_is_trained_after_all_is_computed_apart():
    model = folded(resnet())
    model(IMAGES)
    norm, conv = model.layer1[0].norm1, model.layer1[0].conv2
    total = num_folded(model)
    norm.weight.requires_grad_(True)
    conv.weight.requires_grad_(True)
    assert num_folded(model) == total - 2
    model(IMAGES)[-1].sum().backward()
    assert norm.weight.grad is not None and conv.weight.grad is not None


def test_moving_statistics_are_not_folded():
    model = folded(resnet())
    total = num_folded(model)
    model.layer1[0].norm1.training = True
    assert num_folded(model) == total - 1
    live = ResNet(18, base_channels=4)
    live.requires_grad_(False)
    assert fold_frozen_norms(live) == 0


def test_what_is_trained_is_not_folded():
    tuning = dict(TUNING, train=['bbox_head', r'backbone\.layer4\..*'])
    model = host()
    ours = num_folded(model)
    partly = host(tuning=tuning)
    assert num_folded(partly) == ours - 5
    train_steps(partly, [HOSTS['detr'].batch()])


def test_a_norm_put_in_the_place_of_a_folded_one_works():
    plain = resnet()
    model = folded(plain)
    expected = plain(IMAGES)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.eval()
    assert num_folded(model) == 0
    assert not any(isinstance(m, FoldedNorm) for m in model.modules())
    assert_close(model(IMAGES), expected, **CLOSE)


def test_a_convolution_that_is_copied_alone_has_its_norm_left_to_do():
    model = folded(resnet())
    model.eval()
    expected = model.relu(model.norm1(model.conv1(IMAGES)))
    fused = fuse_conv_bn_eval(model.conv1, model.norm1)
    assert_close(model.relu(fused(IMAGES)), expected, **CLOSE)
    total = num_folded(model)
    assert num_folded(copy.deepcopy(model)) == total > 0


def pruned(conv, norm):
    prune.l1_unstructured(norm, 'weight', 1)


def parametrized(conv, norm):
    parametrize.register_parametrization(norm, 'weight', nn.Tanh())


def plain_tensor(conv, norm):
    weight = norm.weight.detach()
    del norm.weight
    norm.weight = 2 * weight


def another_norm(conv, norm):
    norm.__class__ = FrozenBatchNorm2d


def another_convolution(conv, norm):
    conv.__class__ = nn.Conv2d


@pytest.mark.parametrize('change', [
    pruned, parametrized, plain_tensor, another_norm, another_convolution
])
def test_a_layer_that_keeps_its_weights_elsewhere_is_computed_apart(change):
    plain = resnet()
    model = folded(plain)
    model(IMAGES)
    total = num_folded(model)
    for each in (model, plain):
        change(each.layer1[0].conv2, each.layer1[0].norm2)
    assert num_folded(model) == total - 1
    assert_close(model(IMAGES), plain(IMAGES), **CLOSE)


def test_a_shared_convolution_is_left_alone():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.ModuleList(
        nn.Sequential(conv, nn.BatchNorm2d(3)) for _ in range(2))
    for branch in model:
        freeze_statistics(branch[1])
    assert fold_frozen_norms(model.requires_grad_(False)) == 0


def test_a_shared_norm_is_left_alone():
    norm = nn.BatchNorm2d(3)
    model = nn.ModuleList(
        nn.Sequential(nn.Conv2d(3, 3, 1), norm) for _ in range(2))
    freeze_statistics(norm)
    assert fold_frozen_norms(model.requires_grad_(False)) == 0


def test_the_gradient_of_the_input_is_the_unfolded_models():
    plain = resnet()
    model = folded(plain)
    with torch.inference_mode():  # what it makes must serve a gradient later
        model(IMAGES)
    gradients = []
    for each in (plain, model):
        x = IMAGES.clone().requires_grad_(True)
        each(x)[-1].square().sum().backward()
        gradients.append(x.grad)
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_autocast_gets_the_product_in_its_own_type():
    plain = resnet()
    model = folded(plain)
    with torch.autocast('cpu', torch.bfloat16):
        found = model(IMAGES)[0]
        assert found.dtype == torch.bfloat16
        assert model.conv1.pair.product(model.conv1)[0].dtype == torch.bfloat16
    assert_close(found.float(), plain(IMAGES)[0], rtol=0.1, atol=0.1)
    assert_close(model(IMAGES), plain(IMAGES), **CLOSE)


def test_a_fold_breaks_no_graph():
    model = folded(resnet(18)).layer1[0]
    x = torch.randn(1, 4, 8, 8)
    report = torch._dynamo.explain(model)(x)
    assert report.graph_break_count == 0
    compiled = torch.compile(model, backend='eager')
    assert_close(compiled(x), model(x), **CLOSE)


def test_apply_tuning_after_the_fold_is_as_ever():
    base = HOSTS['detr'].base()
    model = copy.deepcopy(base)
    apply_tuning(model, TUNING)
    fold_frozen_norms(model)
    batch = HOSTS['detr'].batch()
    assert_close(output(model, batch), output(base, batch), **CLOSE)


def test_a_folded_model_runs_without_its_numbers():
    model = folded(resnet(18)).to('meta')
    shapes = [out.shape for out in resnet(18)(IMAGES)]
    assert [out.shape for out in model(IMAGES.to('meta'))] == shapes


def test_a_trace_is_that_of_the_unfolded_model():
    plain = resnet(18)
    traced = torch.jit.trace(folded(plain), IMAGES)  # checked by a second one
    assert_close(traced(IMAGES), plain(IMAGES), **CLOSE)


def test_weights_that_are_loaded_in_inference_mode_are_folded_anew():
    with torch.inference_mode():
        model, other = folded(resnet(18)), resnet(18)
        randomise(other, seed=1)
        model(IMAGES)
        model.load_state_dict(other.state_dict())
        assert_close(model(IMAGES), other(IMAGES), **CLOSE)


def test_what_lies_in_a_head_is_left_alone():
    """TOOD's reads the weight of a convolution without its norm."""
    cfg = zoo('mmdet::tood/tood_r50_fpn_1x_coco.py').bbox_head
    cfg.update(in_channels=12, feat_channels=12, norm_cfg=dict(type='BN'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MMDET.build(cfg).requires_grad_(False)
    for module in head.modules():
        freeze_statistics(module)
    feats, whole = [torch.rand(1, 12, 8, 8)] * 5, copy.deepcopy(head)
    assert fold_frozen_norms(head) == 0
    assert_close(head(feats), whole(feats))
