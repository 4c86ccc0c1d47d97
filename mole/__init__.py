"""Weightings of a pool of units, executed live around the linear layers of a frozen model."""
