"""Running a model and noting what its operators do: graphs for the capture, draws that are put off for the build."""
