"""Modules are made by one thread at a time."""

from __future__ import annotations

import threading

MAKING = threading.RLock()
"""Held while a model is loaded or a module is made.

The libraries that load models change PyTorch for the whole process meanwhile: accelerate's ``init_empty_weights`` replaces
``nn.Module.register_parameter``, transformers sets the default dtype. Of two loads at once one would put back what the other had set,
for good, and a module made meanwhile would have no values.
"""
