"""Base models, the adapter library, and generation of many variants in one batch."""
