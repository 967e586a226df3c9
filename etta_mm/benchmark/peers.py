"""Other toolboxes on the same tasks, with random weights.

Hugging Face's models tuned with its peft, and mmpretrain's ``LoRAModel``. Not
the same code as the host's, so the models differ in detail; their batch and
image size are the same. Without the package ``kernels``, transformers samples
for deformable attention in plain PyTorch on a GPU as well, where mmdet has
mmcv's op.
"""
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from .cases import BOXES_PER_IMAGE, Case, Contestant

RANK = 16
HEADS = ('class_labels_classifier', 'bbox_predictor', 'class_embed',
         'bbox_embed', 'classifier')
NUM_CLASSES = dict(detection=80, classification=1000)


def preload() -> None:
    """Import what the peers need, which takes seconds."""
    import peft  # noqa: F401
    from transformers import (DeformableDetrForObjectDetection,  # noqa: F401
                              DetrForObjectDetection,
                              ViTForImageClassification)


def hf_peft_lora(case: Case, num_parameters: int) -> Contestant:
    """transformers' DETR, Deformable DETR or ViT with peft's LoRA at the
    query and value projections, and the head.

    Args:
        case (Case): The case.
        num_parameters (int): About how many LoRA has: what its rank follows
            from.
    """
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    if case.is_detection:
        model, targets = _hf_detector(case)
    else:
        model, targets = _hf_vit(case)
    widths = sum(
        m.in_features + m.out_features for name, m in model.named_modules()
        if name.rpartition('.')[2] in targets)
    rank = max(round(num_parameters / widths), 1)
    model = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    for name, parameter in model.named_parameters():
        # peft's modules_to_save takes no list, which these heads may be.
        if any(f'.{head}.' in name for head in HEADS):
            parameter.requires_grad_(True)
    model.to(case.device).train()
    given = _hf_batch(case)

    def infer(batch: int):
        images = _images(case, batch)
        return lambda: model(pixel_values=images)

    return Contestant(model, lambda: model(**given).loss, infer,
                      _save_trained(model))


def _save_trained(model: nn.Module) -> Callable[[Path], None]:
    return lambda path: torch.save(
        {n: p.detach()
         for n, p in model.named_parameters() if p.requires_grad}, path)


def _hf_detector(case: Case):
    from transformers import (DeformableDetrConfig,
                              DeformableDetrForObjectDetection, DetrConfig,
                              DetrForObjectDetection, ResNetConfig)
    depths = [3, 4, 23, 3] if case.name.endswith('r101') else [3, 4, 6, 3]
    common = dict(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        auxiliary_loss=True,  # as mmdet, one of every decoder layer
        num_labels=NUM_CLASSES['detection'])
    if case.name.startswith('detr'):
        config = DetrConfig(
            backbone_config=ResNetConfig(
                depths=depths, out_features=['stage4']),
            **common)
        return DetrForObjectDetection(config), ['q_proj', 'v_proj']
    config = DeformableDetrConfig(
        backbone_config=ResNetConfig(
            depths=depths, out_features=['stage2', 'stage3', 'stage4']),
        with_box_refine=case.name != 'deformable',
        two_stage=case.name == 'deformable_twostage',
        num_queries=300,
        **common)
    return (DeformableDetrForObjectDetection(config),
            ['q_proj', 'v_proj', 'value_proj', 'output_proj'])


def _hf_vit(case: Case):
    from transformers import ViTConfig, ViTForImageClassification
    large = dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096)
    if case.image_size[0] != case.image_size[1]:
        raise ValueError(f'image_size={case.image_size}: this ViT takes '
                         'square images; give one number')
    config = ViTConfig(
        image_size=case.image_size[0],
        num_labels=NUM_CLASSES['classification'],
        **(large if case.name == 'vit_l16' else {}))
    return ViTForImageClassification(config), ['query', 'value']


def _images(case: Case, batch: int) -> Tensor:
    return torch.randn(batch, 3, *case.image_size, device=case.device)


def _hf_batch(case: Case) -> dict:
    """Boxes as (cx, cy, w, h) in [0, 1] of the image."""
    images = _images(case, case.batch)
    if not case.is_detection:
        return dict(
            pixel_values=images,
            labels=torch.arange(case.batch, device=case.device))
    labels = [
        dict(
            class_labels=torch.randint(
                80, (BOXES_PER_IMAGE, ), device=case.device),
            boxes=0.25 + 0.5 * torch.rand(
                BOXES_PER_IMAGE, 4, device=case.device))
        for _ in range(case.batch)
    ]
    return dict(pixel_values=images, labels=labels)


def mmpretrain_lora(case: Case) -> Contestant:
    """mmpretrain's ``LoRAModel`` at the packed query, key and value map."""
    config = case.config()
    config.backbone = dict(
        type='LoRAModel',
        module=config.backbone,
        alpha=RANK,
        rank=RANK,
        targets=[dict(type='qkv')])
    model = case.build(config)
    return case.contestant(model, _save_trained(model))
