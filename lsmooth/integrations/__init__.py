"""Measure smoothness where people already train: callbacks for training frameworks, one module each.

None of the frameworks is imported before its module is.
"""
