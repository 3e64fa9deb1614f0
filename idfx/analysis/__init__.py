"""Graph → structure: residual joins, weight uses and the role of every parameter."""
