"""Specification → model with its example inputs; the random draws of its constructor are deferred."""
