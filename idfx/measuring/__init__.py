"""Numerics of linear maps that are known by their products alone: Jacobians and Hessians."""
