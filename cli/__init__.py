"""The command line of idfx: one file per command, which parses options, calls idfx and renders the result."""
