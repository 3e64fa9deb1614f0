"""Which role gets which fill: one file per scheme."""
