"""Choosing one candidate for each picture under a byte cap: the tables, the cap, the optimiser."""
