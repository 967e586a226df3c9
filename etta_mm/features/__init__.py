"""The features of a frozen backbone, kept on disk."""
from .feature_cache_hook import FeatureCacheHook

__all__ = ['FeatureCacheHook']
