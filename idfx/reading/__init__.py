"""Graph → structure: data flow, residual joins, what every parameter is for; `idfx/structure.py` puts it together."""
