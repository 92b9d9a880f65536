"""Schemas: what a fact is. Values checked when made; never any I/O, clock or randomness."""
