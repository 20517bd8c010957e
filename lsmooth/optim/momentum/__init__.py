"""Momentum SGD whose step is scaled by the norm of the whole direction: the shared part of clipping and normalizing.

A step has three stages. `advance` updates momentum, `whole_norm` takes the norm over all parameters of all groups, and
`descend` steps. Two backends do the first and the last: single-tensor and multi-tensor. The norm stays on the device.
"""

from lsmooth.optim.momentum.optimizer import MomentumOptimizer, SharedArguments

__all__ = ["MomentumOptimizer", "SharedArguments"]
