"""What each ATen operator means for the data that flows through it: one function per operator family."""
