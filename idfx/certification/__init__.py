"""Weights → certificate: the initialised model is run and checked against the claims of its plan."""
