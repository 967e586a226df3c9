"""Pictures of data, predictions and trainings."""
from .contact_sheet import contact_sheet
from .training_curve import read_scalars, training_curve

__all__ = ['contact_sheet', 'read_scalars', 'training_curve']
