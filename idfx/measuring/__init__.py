"""Statistics of one batch, and the numerics of Jacobians and Hessians through matrix-vector products."""
