"""Records → output for people or programs; the only place that renders."""
