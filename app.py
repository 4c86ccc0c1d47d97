"""Brickyard: take LoRAs apart, merge them with LoRA-LEGO, compare the result. ``python app.py`` opens the page."""

from __future__ import annotations

import gc
import os

gc.disable()  # importing makes no garbage, and looking for it takes a sixth of the start
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401  (before torch touches CUDA)

from components import page, start  # noqa: E402

app = page.build()
gc.enable()
app.queue(max_size=start.MOST_WAITING)


def main() -> None:
    """Serve the page at once; models and projections warm up behind it."""
    app.launch(prevent_thread_lock=True, **start.options())
    start.warm_up()
    app.block_thread()


if __name__ == "__main__":
    main()
