"""Structure × scheme → plan → weights and files: decisions, overrides, checkpoints, and what writes them."""
