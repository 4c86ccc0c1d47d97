"""The page: the only package that imports gradio. A package a tab, whose ``tab`` has ``create()`` and ``wire()``; here
what all of them share."""
