# ET-Deformable DETR (box refinement) on BigDetection, from the zoo's COCO
# weights.
#
# Paper: no figures; see et_deformable_detr_bigdetection.py.
# Trained: 4,647,162 of 44,612,924 parameters (10.42 %)
_base_ = './et_deformable_detr_bigdetection.py'
model = dict(with_box_refine=True)
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco/deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth'  # noqa: E501
