"""The whole page: header and tabs laid out first, events wired when all of them exist."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backends import bases
from components import (
    compare,
    comparing,
    draw_endpoint,
    dropping,
    endpoints,
    examples,
    gate,
    header,
    history,
    library,
    map,
    merge,
    scoring,
    sharing,
)
from components.session import Session
from components.shelf import start_session

HOUR = 3600
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

SESSION = {**PRIVATE, "concurrency_limit": 1, "concurrency_id": "session"}


def build() -> gr.Blocks:
    """The page, ready to launch."""
    with gr.Blocks(title="Brickyard", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        endpoints.register()  # first: a name is given once, and a private event takes its function's
        draw_endpoint.register()
        session, known = gr.State(None), gr.State(None)
        top = header.create()
        with gr.Row(elem_classes="by-tools"):
            past, shared = history.create(), sharing.create()
        with gr.Tabs(selected="map") as tabs:
            with gr.Tab("Library", id="library"):
                library_tab = library.create()
            with gr.Tab("Map", id="map"):
                map_tab = map.create()
            with gr.Tab("Merge", id="merge"):
                merge_tab = merge.create()
            with gr.Tab("Gate", id="gate") as gate_page:
                gate_tab = gate.create()
            with gr.Tab("Compare", id="compare"):
                compare_tab = compare.create()
                score_box = scoring.create()
                gr.HTML(dropping.RESTORE)
        drop = dropping.create()
        based = library.wire(library_tab, session)
        map.wire(map_tab, session)
        merge.wire(merge_tab, session)
        gate.wire(gate_tab, session, gate_page.select)
        waiting = [tabs, compare_tab.progress, compare_tab.run, compare_tab.stop]
        ready = [session, library_tab.base, compare_tab.prompts, compare_tab.variants, known]
        switched = top.other.click(header.switch, [session], ready, **SESSION)
        restored = dropping.wire(drop, compare_tab, session, known, library_tab.base)
        asked = [top.compare.click(header.show_comparison, None, waiting, **PRIVATE)]
        asked += [event.success(header.show_comparison, None, waiting, **PRIVATE) for event in (switched, restored)]
        scoring.wire(score_box, session, compare_tab.variants, compare_tab.found, compare_tab.scores)
        started = [session, compare_tab.prompts, shared.address]
        opened = page.load(open_page, [shared.link], started, js=sharing.READ, **PRIVATE)
        ready = merge.wire_first(merge_tab, opened, session)
        moved = history.wire(past, session, library_tab.base, ready, SESSION)
        brought = sharing.wire(shared, compare_tab, session, known, library_tab.base, ready)
        asked.append(shared.asked.change(header.show_comparison, None, waiting, **PRIVATE))
        settled = header.wire(top, session, [opened, based, switched, restored, brought, *moved], library_tab.cards)
        comparing.wire(compare_tab, session, known, asked, settled)
    return page


def open_page(address: str) -> tuple[Session, str, str]:
    """What a new visitor finds: the built-in base, three adapters picked, and prompts that fit them; the address waits its turn."""
    session = start_session(bases.catalogue()[0].id)
    return session, examples.first(session), address
