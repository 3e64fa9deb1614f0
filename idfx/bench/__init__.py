"""Measurements: how well schemes train (`idfx bench train`) and how fast idfx is (`idfx bench speed`)."""
