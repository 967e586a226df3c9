# ET-Deformable DETR (two-stage, box refinement) on BigDetection, from the zoo's
# COCO weights.
#
# Paper: no figures; see et_deformable_detr_bigdetection.py.
# Trained: 4,933,974 of 45,075,606 parameters (10.95 %)
_base_ = './et_deformable_detr_refine_bigdetection.py'
model = dict(as_two_stage=True)
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco/deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth'  # noqa: E501
