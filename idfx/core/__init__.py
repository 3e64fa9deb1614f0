"""What every stage shares: records, findings, errors, registries, random numbers by index, files."""
