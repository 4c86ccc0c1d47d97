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
const units = (map) => map._fullData.flatMap((trace, i) => (trace.customdata ? [i] : []));
const grey = async (map, wanted) => {
  const rows = (i) => Array.from(map._fullData[i].customdata).flatMap((data, n) => (wanted.has(data[0]) ? [n] : []));
  // The outline first: with it the plot takes back what it had greyed out itself.
  if ((map.layout.selections || []).length) await Plotly.relayout(map, {selections: []});
  await Plotly.restyle(map, {selectedpoints: units(map).map((i) => (wanted ? rows(i) : null))}, units(map));
};

// A map that was asked for before the latest selection comes with the one before.
document.addEventListener('drawn', () => {
  wire();
  const map = find('#unit-map'), rows = props.value?.rows;
  if (!map?._fullData || rows === undefined || !units(map).length) return;
  const shown = units(map).map((i) => map._fullData[i].selectedpoints);
  const count = shown.every((points) => !points) ? null : shown.reduce((sum, points) => sum + (points?.length ?? 0), 0);
  if (count !== (rows?.length ?? null)) grey(map, rows && new Set(rows));
});
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
  if (!units(map).length) return; // an empty map has nothing to mark
  if (marks.rows === null || marks.rows.length !== caught) await grey(map, marks.rows && new Set(marks.rows));
  caught = null;
  const overlay = JSON.stringify([marks.links, marks.rings]);
  if (overlay === overlaid) return;
  overlaid = overlay;
  const [links, rings] = [map._fullData.length - 2, map._fullData.length - 1];
  Plotly.restyle(map, {x: [marks.links[0], marks.rings[0]], y: [marks.links[1], marks.rings[1]]}, [links, rings]);
});
