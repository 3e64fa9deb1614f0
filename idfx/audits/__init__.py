"""Audits of an initialised model: one small file per metric."""
