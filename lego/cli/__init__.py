"""The commands of ``python -m lego``, a file a family."""
