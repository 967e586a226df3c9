# The head alone: DETR-R101 on COCO.
#
# The learning rate and schedule are those of the config below, which gives the
# head the zoo's rate; the rate has not been searched at this size.
# Trained: 153,429 of 60,567,189 parameters (0.25 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(tuning=dict(_delete_=True, train=['bbox_head']))
