"""Structure × scheme → plan → weights and files: decisions, overrides, checkpoints, and writing them."""
