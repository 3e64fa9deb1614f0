"""The command line of idfx: one file per command, each of which parses, calls idfx and renders."""
