"""Shared by every stage: records, findings, errors, registries, random numbers by index, files."""
