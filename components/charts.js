// Draws the figure that the value holds. The next one changes it in place, so that zoom, legend and canvas stay.
const plot = element.firstElementChild;
const width = () => plot.clientWidth || undefined; // nothing while its tab is hidden
const fit = async () => {
  if (!plot._fullLayout || !width() || width() === plot._fullLayout.width) return;
  await Plotly.relayout(plot, {width: width()});
  await Plotly.relayout(plot, {width: width()}); // a legend that takes fewer lines now is placed by the margins that it took before
};
let shown = '';

const draw = async () => {
  while (!window.Plotly) await new Promise((next) => setTimeout(next, 20)); // a hidden plot brings it
  const wanted = props.value ?? '';
  if (wanted === shown) return;
  shown = wanted;
  if (wanted) {
    const {data, layout} = JSON.parse(wanted);
    plot.classList.add('js-plotly-plot'); // by now there is room, which has a width
    await Plotly.react(plot, data, {...layout, width: width()});
  } else {
    Plotly.purge(plot);
    plot.className = '';
  }
  element.dispatchEvent(new CustomEvent('drawn', {bubbles: true}));
};

let drawn = Promise.resolve();
const next = () => { drawn = drawn.then(draw); };
watch('value', next);
new ResizeObserver(() => requestAnimationFrame(() => { drawn = drawn.then(fit); })).observe(element);
next();
