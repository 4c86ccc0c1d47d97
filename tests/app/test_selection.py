"""One selection for all views, and what is done with it, without a server: on the built-in adapters."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from backends import library
from backends.ablation import Ablation
from components import kinds
from components.library import shelf
from components.map import ablate, bricks, maps, selection, unit_details, views
from components.map import tab as map
from components.session.state import Edited, Named, Pick, Selection, Session, columns
from lego import AdapterError
from lego.unitset import UnitSet
from lego.verify import verify

KIND = "q_proj"


@pytest.fixture(scope="module")
def session() -> Session:
    keys = {entry.name: entry.key for entry in shelf.builtin()}
    names = ("past-tense", "sentiment", "language")
    return Session("base", tuple(Pick(keys[name], 1.0 + slot, slot) for slot, name in enumerate(names)))


@pytest.fixture(scope="module")
def seen(session: Session) -> maps.View:
    return maps.view(session, KIND, 16)


def units_by_hand(seen: maps.View, rows: list[int]) -> set:
    units = seen.units
    return {(seen.keys[units.adapter[i]], units.modules[units.module[i]], int(units.rank_index[i])) for i in rows}


def catch(
    session: Session, seen: maps.View, origin: object, value: object, chosen: Selection | None = None
) -> Selection:
    return selection.caught(session, seen, chosen or Selection(), "Clusters", (), origin, value)


def test_rows_and_units_are_the_same_thing(seen: maps.View) -> None:
    rows = np.random.default_rng(0).choice(len(seen.units), 200, replace=False).tolist()
    units = maps.unit_set(seen, rows)
    assert units == units_by_hand(seen, rows)
    assert maps.rows_of(seen, units).tolist() == sorted(rows)
    away = UnitSet.of([("nobody", seen.units.modules[0], 0), (seen.keys[0], "nowhere", 0)])
    assert maps.rows_of(seen, units | away).tolist() == sorted(rows)


def test_a_lasso_selects_and_greys_the_rest(session: Session, seen: maps.View) -> None:
    chosen = catch(session, seen, "map", [5, 3, 3])
    assert chosen.units == units_by_hand(seen, [3, 5])
    assert chosen.primary is None
    assert selection.marks(seen, chosen).rows.tolist() == [3, 5]
    assert selection.marks(seen, Selection()).rows is None


def test_a_choice_that_stays_is_not_sent_back(session: Session, seen: maps.View) -> None:
    """While one choice of a layer is answered there may be the next."""
    layer, who = seen.units.modules[3], gr.Request(session_hash="me")

    def sent(kind: str | None, layer: str, k: int) -> list[dict]:
        offered = map.place(session, Selection(), kind, layer, k, "adapter", maps.PCA, who)[:3]
        return [each.constructor_args for each in offered]

    stay = sent(KIND, layer, 5)
    assert not any("value" in each for each in stay)
    assert layer in [value for _, value in stay[1]["choices"]]
    assert [each["value"] for each in sent(None, "nowhere", 500)] == [
        maps.kinds(session)[0],
        maps.ALL_LAYERS,
        maps.cluster_range(session, maps.kinds(session)[0])[1],
    ]


def test_controls_that_still_stand_as_for_other_picks_show_what_they_will(session: Session) -> None:
    first = maps.kinds(session)[0]
    wanted = maps.view(session, first, 4)
    assert maps.seen(session, "attn1.to_q", "unet.mid_block.attentions.0.to_q", 4) == wanted
    assert maps.seen(session, first, "unet.mid_block.attentions.0.to_q", 4) == wanted
    assert len(maps.View(wanted.mapped, wanted.keys, wanted.groups, 4000).clusters) == len(wanted.units)


def test_a_click_makes_a_unit_primary_with_its_nearest_drawn(session: Session, seen: maps.View) -> None:
    (unit,) = units_by_hand(seen, [7])
    for chosen in (catch(session, seen, "map", [7]), catch(session, seen, "unit", list(unit))):
        assert (chosen.primary, set(chosen.units)) == (unit, {unit})
    near = unit_details.nearest(seen, 7)
    cosines = seen.units.alike(7)
    best = [i for i in np.argsort(-cosines) if i != 7][: len(near)]
    assert [i for i, _ in near] == best
    marks = selection.marks(seen, chosen)
    assert marks.rings == (7,)
    assert marks.links == tuple((7, i) for i in best)
    data = marks.data(seen.mapped.pca)
    assert data["links"][0][:3] == [*seen.mapped.pca[[7, best[0]], 0].tolist(), None]


def test_a_row_of_the_table_is_primary_within_what_is_selected(session: Session, seen: maps.View) -> None:
    lassoed = catch(session, seen, "map", [1, 2, 3])
    (unit,), (other,) = units_by_hand(seen, [2]), units_by_hand(seen, [9])
    inside = catch(session, seen, "unit", list(unit), lassoed)
    assert (inside.units, inside.primary) == (lassoed.units, unit)
    assert set(catch(session, seen, "unit", list(other), lassoed).units) == {other}


def test_a_layer_selects_its_units_and_fills_in_the_strip(session: Session, seen: maps.View) -> None:
    chosen = catch(session, seen, "layer", 2)
    rows = np.flatnonzero(seen.units.layer == np.unique(seen.units.layer)[2])
    assert chosen.units == units_by_hand(seen, rows.tolist())
    strip = selection.strip(seen, chosen)
    assert f'aria-label="layer 2: {len(rows)} of {len(rows)} bricks selected"' in strip
    assert strip.count("bricks selected") == len(np.unique(seen.units.layer))
    assert strip.count(": 0 of") == len(np.unique(seen.units.layer)) - 1


@pytest.mark.parametrize(
    ("origin", "value"),
    [
        ("map", [10**6]), ("map", ["1"]), ("map", "1"), ("map", None), ("map", [-1]), ("unit", ["x", "y", 0]), ("unit", None),
        ("unit", [None, 1]), ("layer", "1"), ("view", [0]), ("view", [-1, 0]), ("view", [0, 10**6]), ("view", "x"), ("ablated", 0),
        ("nothing", 1), (None, None),
    ],
)  # fmt: skip
def test_what_the_browser_should_not_send_is_refused(
    session: Session, seen: maps.View, origin: object, value: object
) -> None:
    with pytest.raises(AdapterError):
        catch(session, seen, origin, value)


def test_a_unit_beyond_its_rank_is_refused(session: Session, seen: maps.View) -> None:
    (key, module, _) = next(iter(units_by_hand(seen, [0])))
    with pytest.raises(AdapterError, match="not among the picked"):
        catch(session, seen, "unit", [key, module, library.get(key).modules[module].rank])


def test_clearing_and_unpicking_let_go(session: Session, seen: maps.View) -> None:
    chosen = catch(session, seen, "map", list(range(len(seen.units))))
    assert catch(session, seen, "clear", None, chosen) == Selection()
    kept = map.left(session.toggle(session.picks[0].key), replace(chosen, primary=next(iter(chosen.units))))
    assert {key for key, _, _ in kept.units} == {pick.key for pick in session.picks[1:]}


def test_pinning_holds_a_unit_beside_the_next(session: Session, seen: maps.View) -> None:
    first = catch(session, seen, "map", [4])
    pinned = map.pin(first)
    both = catch(session, seen, "map", [11], pinned)
    assert both.pinned == first.primary != both.primary
    drawn = unit_details.draw(session, seen, both)
    assert len(re.findall("<section", drawn)) == 2
    assert len(re.findall("<section", unit_details.draw(session, seen, pinned))) == 1
    assert map.pin(pinned).pinned is None


def test_details_tell_norm_cluster_and_shares(session: Session, seen: maps.View) -> None:
    chosen = catch(session, seen, "map", [6])
    key, module, index = chosen.primary
    factors = library.get(key)[module]
    whole = factors.delta().double()
    unit = factors.scale * factors.up[:, index].double()[:, None] * factors.down[index].double()
    drawn = unit_details.draw(session, seen, chosen)
    for fact in (
        f"{float((unit * whole).sum() / whole.square().sum()):.1%}",
        f"{seen.units.norm[6]:.3f}",
        str(seen.clusters[6] + 1),
    ):
        assert f"<b>{fact}</b>" in drawn
    every = sum(unit_details.shares((key, m, i))[1] for m, s in library.get(key).modules.items() for i in range(s.rank))
    assert every == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", views.VIEWS)
@pytest.mark.parametrize("where", [KIND, "model.layers.3.self_attn.q_proj"])
def test_every_view_draws_and_selects(session: Session, name: str, where: str) -> None:
    seen = maps.view(session, where, 5)
    shown = views.VIEWS[name](session, seen)
    assert shown.figure.data
    assert shown.title
    if shown.units is not None:
        found = views.units_at(session, seen, name, [0, 0])
        assert {key for key, _, _ in found} <= {pick.key for pick in session.picks}


def test_a_cell_of_layers_and_adapters_is_that_adapters_layer(session: Session, seen: maps.View) -> None:
    key = session.picks[1].key
    found = views.units_at(session, seen, "Layers × adapters: norms", [1, 4])
    modules = {m: spec.rank for m, spec in library.get(key).modules.items() if ".layers.4." in m}
    assert found == {(key, m, i) for m, rank in modules.items() for i in range(rank)}
    shown = views.VIEWS["Layers × adapters: norms"](session, seen)
    dense = sum(float(library.get(key)[m].delta().double().square().sum()) for m in modules) ** 0.5
    assert shown.figure.data[0].z[1][4] == pytest.approx(session.picks[1].weight * dense, rel=1e-5)


def test_a_bar_is_its_cluster(session: Session) -> None:
    seen = maps.view(session, "model.layers.3.self_attn.q_proj", 5)
    shown = views.composition(session, seen)
    largest = np.bincount(seen.clusters).argmax()
    rows = np.flatnonzero(seen.clusters == largest).tolist()
    assert views.units_at(session, seen, "Clusters", [0, 0]) == units_by_hand(seen, rows)
    assert sum(bar.y[0] for bar in shown.figure.data) == len(rows)


def test_a_bar_of_a_layer_is_its_clusters_of_one_mixture(session: Session, seen: maps.View) -> None:
    shown = views.composition(session, seen)
    for trace, bar in enumerate(shown.figure.data):
        layer = next((i for i, count in enumerate(bar.y) if count), None)
        if layer is None:
            continue
        rows = maps.rows_of(seen, views.units_at(session, seen, "Clusters", [trace, layer]))
        owners: dict = {}
        for row in rows:
            owners.setdefault((seen.units.module[row], seen.clusters[row]), set()).add(seen.units.adapter[row])
        assert len(owners) == bar.y[layer]
        assert len({len(own) for own in owners.values()}) == 1
        assert set(seen.units.layer[rows]) == {np.unique(seen.units.layer)[layer]}


def test_mute_solo_and_scale_are_variants_of_the_sum(session: Session, seen: maps.View) -> None:
    chosen = catch(session, seen, "map", [0, 1, 2])
    made = bricks.scale(bricks.solo(bricks.mute(session, chosen), chosen), chosen, -2)
    muted, alone, scaled = made.edited
    assert (muted.muted, muted.scaled) == (chosen.units, ())
    assert len(alone.muted) == len(UnitSet.every({p.key: library.get(p.key) for p in session.picks})) - 3
    assert not alone.muted & chosen.units
    assert scaled.weighting.factors == [(chosen.units, -2.0)]
    assert {e.weights for e in made.edited} == {session.weights}
    ids = {column.id for column in columns(made, shelf.shelf(made))}
    assert {f"edited:{edited.name}" for edited in made.edited} <= ids
    other = catch(session, seen, "map", [3, 4, 5])
    again = bricks.mute(bricks.mute(made, chosen), other)
    assert [edited.name for edited in again.edited].count(muted.name) == 1
    assert len(again.edited) == 4, "three other bricks are another variant, under a name of its own"


@pytest.mark.parametrize("factor", [None, "2", True, float("nan"), 1e9])
def test_a_factor_must_be_a_number(session: Session, seen: maps.View, factor: object) -> None:
    with pytest.raises(gr.Error, match="factor"):
        bricks.scale(session, catch(session, seen, "map", [0]), factor)


def test_selections_are_kept_under_names(session: Session, seen: maps.View) -> None:
    chosen = catch(session, seen, "map", [0, 1])
    kept, emptied = bricks.keep(session, chosen, "  two bricks ")
    assert emptied == ""
    assert kept.named == (Named("two bricks", chosen.units),)
    assert bricks.recall(kept, "two bricks") == Selection(chosen.units)
    assert bricks.mute(kept, chosen).edited[0].name == "Sum without “two bricks”"
    for name, what in (("", chosen), ("x", Selection())):
        with pytest.raises(gr.Error):
            bricks.keep(session, what, name)
    with pytest.raises(gr.Error, match="no such selection"):
        bricks.recall(session, "two bricks")


def test_an_edited_variant_is_saved_exactly(
    session: Session, seen: maps.View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path))
    muted, scaled = catch(session, seen, "map", [0, 1, 30]).units, catch(session, seen, "map", [50, 51]).units
    variant = Edited("my bricks", session.weights, muted, ((scaled, 2.5),))
    edited = session.edit(variant)
    saved, reported = bricks.join(edited, bricks.save(edited, "my bricks"))
    assert saved.edited == ()
    (made,) = saved.merges
    assert reported.value == made.key
    found = library.get(made.key)
    for module in {m for _, m, _ in (*muted, *scaled)} | {"model.layers.9.mlp.down_proj"}:
        dense = 0
        for key, weight in session.weights:
            factors = library.get(key)[module]
            times = [
                2.5 if (key, module, u) in scaled else float((key, module, u) not in muted) for u in range(factors.rank)
            ]
            dense = dense + weight * factors.scale * ((factors.up.double() * np.array(times)) @ factors.down.double())
        np.testing.assert_allclose(found[module].delta(), dense, atol=1e-6 * float(dense.abs().max()))
    assert verify(library.entry(made.key).path).equal


def test_a_variant_of_nothing_is_not_saved(session: Session) -> None:
    every = UnitSet.every({pick.key: library.get(pick.key) for pick in session.picks})
    with pytest.raises(gr.Error, match="nothing is left"):
        bricks.save(session.edit(Edited("nothing", session.weights, every)), "nothing")


def test_clusters_of_a_map_hold_every_unit_once(session: Session, seen: maps.View) -> None:
    found = ablate.clusters(seen)
    assert sum(len(cluster.units) for cluster in found) == len(seen.units)
    assert len({cluster.name for cluster in found}) == len(found)
    chosen = selection.caught(session, seen, Selection(), "Clusters", tuple(c.units for c in found), "ablated", 3)
    assert chosen.units == found[3].units


def test_too_many_clusters_are_refused_before_the_base_is_needed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate, "MOST", dict.fromkeys(ablate.MOST, 10))
    with pytest.raises(gr.Error, match="480 clusters are too many"):
        next(ablate.run(session, "hello", KIND, 16))


def test_small_effects_can_be_told_apart(seen: maps.View) -> None:
    muted = ablate.clusters(seen)[:2]
    drawn = ablate.draw(muted, Ablation((2.5e-5, 1.2e-5), 2, 2, "yes", 0.1), kinds.TEXT)
    assert [float(cell) for cell in re.findall(r">([\d.e-]+)</td></tr>", drawn)] == [2.5e-5, 1.2e-5]
