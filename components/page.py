"""The whole page: header and tabs laid out first, events wired when all of them exist."""

from __future__ import annotations

import gradio as gr

from backends import bases
from components import charts, events, glossary, header, hints, kinds
from components.compare import ahead, comparing, examples, pictures, scoring
from components.compare import tab as compare
from components.endpoints import adapters as endpoints
from components.endpoints import draw as draw_endpoint
from components.events import ALONE, PRIVATE, Page
from components.followed import Followed, Followers
from components.gate import tab as gate
from components.library import account, push
from components.library import tab as library
from components.library.shelf import start_session
from components.map import tab as map
from components.merge import tab as merge
from components.session import dropping, history, leaving, sharing
from components.session.state import Session
from lego import AdapterError

HOUR = 3600


def build() -> gr.Blocks:
    """The page, ready to launch."""
    with Page(title="Brickyard", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        page.still = gr.HTML(visible="hidden")
        charts.bring()
        endpoints.register()  # first: a name is given once, and a private event takes its function's
        draw_endpoint.register()
        session, settled = Followed(), Followed(0)
        top, token = header.create(), account.create()
        with gr.Row(elem_classes="by-keeping"):
            past, shared = history.create(), sharing.create()
        with gr.Tabs(selected="map") as tabs:
            with gr.Tab("Library", id="library"):
                glossary.lead("library")
                library_tab = library.create()
            with gr.Tab("Map", id="map"):
                glossary.lead("map")
                map_tab = map.create()
            with gr.Tab("Merge", id="merge"):
                glossary.lead("merge")
                merge_tab, merge_push = merge.create(), push.create("this merge")
            with gr.Tab("Gate", id="gate") as gate_page:
                glossary.lead("gate")
                gate_tab, gate_push = gate.create(), push.create("these gates")
            with gr.Tab("Compare", id="compare", elem_id="compare-page"):
                glossary.lead("compare")
                compare_tab = compare.create()
                score_box = scoring.create()
                gr.HTML(dropping.RESTORE)
        drop = dropping.create()
        hints.create(), glossary.create()
        gr.HTML(pictures.VIEWER, js_on_load=pictures.script())
        based = library.wire(library_tab, session, token)
        map.wire(map_tab, session, compare_tab.settings, merge_tab.shown)
        merge.wire(merge_tab, session)
        other = [session, library_tab.base, compare_tab.prompts, *compare_tab.following]
        switched = top.other.click(header.switch, [session, *compare_tab.axes.offered], other, **ALONE)
        restored = dropping.wire(drop, compare_tab, session, library_tab.base)
        about = [tabs, compare_tab.progress, compare_tab.run, compare_tab.stop]
        clicked = top.compare.click(comparing.show, None, about, **PRIVATE)
        asked = [clicked.then, switched.success, restored.success, shared.asked.change]
        scoring.wire(score_box, session, compare_tab.variants, compare_tab.found, compare_tab.scores)
        started = [session, compare_tab.prompts, shared.address]
        opened = page.load(open_page, [shared.link], started, js=sharing.READ, **PRIVATE)
        account.wire(opened, token)
        settings = Followers()
        moved = history.wire(past, session, settings, library_tab.base, compare_tab, opened)
        brought = sharing.wire(shared, compare_tab, session, settings, library_tab.base, opened)
        header.wire(top, session, [opened, based, switched, restored, brought, *moved], library_tab.cards, settled)
        gate.wire(gate_tab, session, gate_page.select, settled)
        comparing.wire(compare_tab, session, settings, asked, settled, tabs)
        push.wire(merge_push, session, merge_tab.shown, token, push.merge_files)
        push.wire(gate_push, session, gate_tab.shown, token, push.gates_files)
        leaving.wire(page)
        changed = [each.change for each in (compare_tab.variants, *compare_tab.kept)]
        events.newest(changed, settings.run, settings.given, settings.shown, **ALONE)
        session.wire()
        settled.wire()
    return page


def open_page(address: str | None, request: gr.Request) -> tuple[Session, str, str]:
    """What a new visitor finds: the built-in base, three adapters picked and merged, prompts that fit; the address waits its turn."""
    events.stay_open(request)
    try:
        session = ahead.first_session(kinds.TEXT)
    except AdapterError as error:  # the rest of the page works without a merge
        gr.Warning(str(error))
        session = start_session(bases.catalogue()[0].id)
    return session, examples.first(session), address or ""
