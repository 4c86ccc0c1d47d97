"""The Map tab: units in the plane, the views beside it, one selection for all, and what is done with selected bricks."""
