"""Observing the training loop: its backward passes, its optimizer steps, and which steps are measured."""
