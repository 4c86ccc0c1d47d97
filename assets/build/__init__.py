"""Remake the built-in adapters and task rows from public packages: ``python -m assets.build all``."""
