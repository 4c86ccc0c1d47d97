"""The first visit: four short hints lead through pick, map, merge and compare, once; the header's button shows them again."""

from __future__ import annotations

import json

import gradio as gr

STEPS = (
    ("Library", "Pick", "A card is one adapter, a click picks it. Three are picked already; change them, or add your own below."),
    ("Map", "Look", "Each point is one brick of a picked adapter; near ones say much the same. Draw a lasso, mute what it caught."),
    ("Merge", "Merge", "Choose a method, press Merge: a report says what it keeps of its sources. Download it there."),
    ("Compare", "Compare", "Base, adapters and merges answer the same prompts side by side. Press Compare, and judge for yourself."),
)  # fmt: skip
"""Of each: the tab, a heading, what to do there."""
KEPT = "brickyard-hints"
"""Where the browser remembers that they were shown."""

SCRIPT = """
const steps = %s, card = element.querySelector('.by-hint'), [count, title, text] = card.querySelectorAll('small, b, p');
const [next, skip] = card.querySelectorAll('button');
const open = (name, tries) => {
  const tab = [...document.querySelectorAll('[role=tab]')].find((each) => each.textContent.trim() === name);
  if (tab?.getAttribute('aria-selected') === 'true' || !tries) return;
  tab?.click();
  setTimeout(open, 100, name, tries - 1); // the page may still be putting its tabs up
};
let at = 0;
const show = (number) => {
  at = number;
  card.hidden = at >= steps.length;
  if (card.hidden) { localStorage.setItem('%s', 'shown'); return; }
  const [name, heading, told] = steps[at];
  [count.textContent, title.textContent, text.textContent] = [`${at + 1} of ${steps.length}`, heading, told];
  next.textContent = at + 1 < steps.length ? 'Next' : 'Done';
  skip.hidden = at + 1 === steps.length;
  open(name, 50);
};
next.addEventListener('click', () => show(at + 1));
skip.addEventListener('click', () => show(steps.length));
document.addEventListener('click', (event) => {
  if (event.target.closest('[data-hints]')) show(0);
  const tab = !card.hidden && event.isTrusted && event.target.closest('[role=tab]');
  const step = tab ? steps.findIndex(([name]) => name === tab.textContent.trim()) : -1;
  if (step >= 0) show(step); // who goes on alone is not called back
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && !card.hidden) show(steps.length); });
if (!localStorage.getItem('%s')) show(0);
"""


def create() -> gr.HTML:
    """The card at the foot of the page; hidden where it was shown before."""
    buttons = '<div><button type="button">Next</button><button type="button">Skip</button></div>'
    card = f'<div class="by-hint" role="region" aria-label="First steps" hidden><small></small><b></b><p></p>{buttons}</div>'
    return gr.HTML(card, js_on_load=SCRIPT % (json.dumps(STEPS), KEPT, KEPT), container=False)
