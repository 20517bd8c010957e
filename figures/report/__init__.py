"""One page about a run: self-contained HTML with interactive figures, which opens without a network."""

from __future__ import annotations

from lsmooth.figures.report.page import report_page

__all__ = ["report_page"]
