"""The words of the page, each behind one click: a word in a heading or a line of help opens what it means."""

from __future__ import annotations

import json
import re
from html import escape

import gradio as gr

WORDS = {
    "brick": "A unit: one row of a LoRA's A with the matching column of its B, the smallest piece a LoRA is made of. Its rank says "
    "how many there are in each module. (The paper calls it a Minimal Semantic Unit.)",
    "adapter": "A LoRA: a pair of small matrices, A and B, for each module it changes, trained beside a frozen base model.",
    "cluster": "Bricks of one module that point the same way, found by k-means. LoRA-LEGO puts one brick in the place of each "
    "cluster: its centre.",
    "merge": "One LoRA made of several. It runs as fast as one, and is one compromise for all inputs.",
    "gate": "A small learned switch in a block of the model: for every input it says how much of each LoRA takes part (MoLE).",
    "mask": "A LoRA that the gates may not use. The others share its weight; nothing is trained again.",
    "fidelity": "How near a merge is to the exact sum of what was merged: relative error, ratio of norms, cosine.",
    "exact sum": "All picked LoRAs added at their weights, nothing lost: the yardstick of every merge.",
    "nat": "A unit of information, 1.44 bits. A token that costs 0.7 nats was given a chance of one in two, one that costs 2.3 one "
    "in ten.",
    "variant": "The base model with some weight on every brick: bare, with one LoRA, a merge, gates. Each is a column in Compare.",
}

LEADS = {
    "library": "An [adapter] is one card, a click picks it. What you pick here is what every other tab works with.",
    "map": "Each point is a [brick] of a picked [adapter]. Bricks that lie together say much the same; LoRA-LEGO makes one brick "
    "of each [cluster].",
    "merge": "A [merge] is one adapter made of several; its [fidelity] says how near it comes to their [exact sum].",
    "gate": "[Gates: gate] (MoLE) keep every LoRA and decide for each input how much of it takes part; a [mask] leaves one out, "
    "without training again.",
    "compare": "Every [variant] works on the same prompts under the same noise, so what differs is what the weights do.",
}
"""What each tab is for, in one line; words in brackets can be clicked."""

SCRIPT = """
const words = %s;
const box = element.querySelector('[popover]');
document.addEventListener('click', (event) => {
  const button = event.target.closest('button.by-word');
  if (!button) return;
  const [title, text] = box.children;
  title.textContent = button.dataset.word;
  text.textContent = words[button.dataset.word];
  box.showPopover();
  const at = button.getBoundingClientRect(), size = box.getBoundingClientRect();
  const below = at.bottom + 8 + size.height < innerHeight;
  box.style.left = Math.max(8, Math.min(at.left, innerWidth - size.width - 8)) + 'px';
  box.style.top = (below ? at.bottom + 8 : Math.max(8, at.top - size.height - 8)) + 'px';
});
"""


def create() -> gr.HTML:
    """The one place where a word's meaning appears; nothing is shown until a word is clicked."""
    box = '<div popover class="by-meaning" role="note"><b></b><p></p></div>'
    return gr.HTML(box, js_on_load=SCRIPT % json.dumps(WORDS), container=False)


def word(key: str, shown: str = "") -> str:
    """A word of `WORDS` as people can click it.

    Args:
        key: of the word.
        shown: how it stands in its sentence; the word itself unless given.
    """
    assert key in WORDS, key
    return f'<button type="button" class="by-word" data-word="{escape(key)}">{escape(shown or key)}</button>'


def lead(tab: str) -> gr.HTML:
    """What a tab is for."""
    return gr.HTML(line(LEADS[tab]), container=False)


def line(text: str) -> str:
    """One quiet line whose words can be clicked: ``[brick]``, or ``[bricks: brick]`` where the sentence needs another form."""
    parts = re.split(r"\[([^\]:]+)(?:: ([^\]]+))?\]", text)
    html = [escape(parts[0])]
    for shown, key, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        html += [word(key or shown, shown), escape(after)]
    return f'<p class="by-subtle by-lead">{"".join(html)}</p>'
