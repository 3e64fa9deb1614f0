"""Schemes decide which role gets which fill: one file per scheme."""
