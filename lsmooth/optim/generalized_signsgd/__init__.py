"""Generalized SignSGD: the optimizer, and one module for each backend that does its arithmetic."""

from lsmooth.optim.generalized_signsgd.functional import generalized_signsgd
from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors
from lsmooth.optim.generalized_signsgd.optimizer import GeneralizedSignSGD

__all__ = ["GeneralizedSignSGD", "Hyperparameters", "Tensors", "generalized_signsgd"]
