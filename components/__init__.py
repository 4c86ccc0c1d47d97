"""The page: the only package that imports gradio. One file a tab, each with ``create()`` and ``wire()``."""
