# The head alone: Deformable DETR on COCO.
#
# The learning rate and schedule are those of the config below, which gives the
# head the zoo's rate; the rate has not been searched at this size.
# Trained: 153,172 of 40,118,934 parameters (0.38 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(tuning=dict(_delete_=True, train=['bbox_head']))
