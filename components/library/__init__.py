"""The Library tab: bases, adapters as cards, and every way to add some or to give some away."""
