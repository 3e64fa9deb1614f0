"""Records → what a person or a program reads; the only place that renders."""
