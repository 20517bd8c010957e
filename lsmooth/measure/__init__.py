"""Turns gradients into numbers: the measured quantities, and the rows that hold them."""
