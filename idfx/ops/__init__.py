"""The meaning of each ATen operator for its data: one function per operator family."""
