// Wires the map and what stands beside it: every way to select sends (origin, value); what is selected comes back as `props.value`.
const send = (origin, value) => trigger('select', {origin, value});
const ids = (points) => points.filter((point) => point.customdata).map((point) => point.customdata[0]);
const find = (where) => document.querySelector(`${where} .js-plotly-plot`);
let caught = null; // how many units a lasso holds that the plot greys out by itself

const wire = () => {
  const map = find('#unit-map'), view = find('#clusters');
  if (map && !map.dataset.wired) {
    map.dataset.wired = 'yes';
    map.on('plotly_selected', (event) => {
      if (!event || !(event.lassoPoints || event.range)) return; // a redraw, not a person
      caught = ids(event.points).length;
      send('map', ids(event.points));
    });
    map.on('plotly_click', (event) => ids(event.points).length && send('map', ids(event.points).slice(0, 1)));
    map.on('plotly_deselect', () => send('clear', null));
  }
  if (view && !view.dataset.wired) {
    view.dataset.wired = 'yes';
    view.on('plotly_click', ({points: [point]}) => {
      const at = point.pointNumber;
      send('view', Array.isArray(at) ? at : [point.curveNumber, at]);
    });
  }
};
document.addEventListener('drawn', wire);
wire();

const page = () => document.querySelector('#map-page');
const here = () => page() && page().offsetParent !== null;
document.addEventListener('click', (event) => {
  if (!here() || !page().contains(event.target)) return;
  const row = event.target.closest('[data-origin]') || event.target.closest('tr')?.querySelector('[data-origin]');
  if (row) send(row.dataset.origin, JSON.parse(row.dataset.value));
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || !here() || document.querySelector('dialog[open]')) return;
  const typing = 'input:not([type=radio], [type=checkbox], [type=range]), textarea, [role=listbox]';
  if (!event.target.closest(typing)) send('clear', null);
});

let overlaid = '';
watch('value', async () => {
  const map = find('#unit-map'), marks = props.value;
  if (!map || !marks || !window.Plotly || !map._fullData) return;
  const traces = map._fullData, units = traces.flatMap((trace, i) => (trace.customdata ? [i] : []));
  if (!units.length) return; // an empty map has nothing to mark
  if (marks.rows === null || marks.rows.length !== caught) {
    const wanted = marks.rows && new Set(marks.rows);
    const rows = (i) => Array.from(traces[i].customdata).flatMap((data, n) => (wanted.has(data[0]) ? [n] : []));
    // The outline first: with it the plot takes back what it had greyed out itself.
    if ((map.layout.selections || []).length) await Plotly.relayout(map, {selections: []});
    await Plotly.restyle(map, {selectedpoints: units.map((i) => (wanted ? rows(i) : null))}, units);
  }
  caught = null;
  const overlay = JSON.stringify([marks.links, marks.rings]);
  if (overlay === overlaid) return;
  overlaid = overlay;
  const [links, rings] = [traces.length - 2, traces.length - 1];
  Plotly.restyle(map, {x: [marks.links[0], marks.rings[0]], y: [marks.links[1], marks.rings[1]]}, [links, rings]);
});
