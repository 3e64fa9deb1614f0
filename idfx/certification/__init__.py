"""Weights → certificate: the initialised model is run and held to what its plan claims."""
