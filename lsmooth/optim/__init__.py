"""Generalized SignSGD and the optimizers it is compared with."""
