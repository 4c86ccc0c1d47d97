// Pictures made large: one alone, a slider between two, or their difference. Everything happens in the browser.
const dialog = element.querySelector('dialog');
const find = (query) => dialog.querySelector(query);
const [one, other, canvas, slide] = ['img.one', 'img.other', 'canvas', 'input[type=range]'].map(find);
const [partner, gain, text, stage] = ['select', 'input[type=number]', '.by-viewer-text', '.by-stage'].map(find);
// Of the tab that is open: a picture that is not seen has no box.
const cells = () => [...document.querySelectorAll('.by-gallery button[data-place]:not([disabled])')].filter((cell) => cell.getClientRects().length);
const cellAt = (place) => cells().find((cell) => cell.dataset.place === place);
const caption = (cell) => cell.querySelector('img').alt;
const view = () => find('input[name=view]:checked').value;
let shown = null; // the place of the picture that was clicked

// The base's picture, or the first other one, from the same prompt and noise.
const usual = (place) => {
  const same = cells().map((cell) => cell.dataset.place).filter((at) => at.slice(at.indexOf('.')) === place.slice(place.indexOf('.')));
  return same.find((at) => at !== place) ?? place;
};

const pixels = (image, width, height) => {
  const sheet = Object.assign(document.createElement('canvas'), {width, height}).getContext('2d');
  sheet.drawImage(image, 0, 0, width, height);
  return sheet.getImageData(0, 0, width, height).data;
};

// Draws |a − b| × gain on the canvas; gives the mean of |a − b| over pixels and channels, 0 to 255.
const difference = () => {
  const width = (canvas.width = one.naturalWidth), height = (canvas.height = one.naturalHeight);
  const a = pixels(one, width, height), b = pixels(other, width, height);
  const out = new ImageData(width, height);
  const factor = Math.max(1, Number(gain.value) || 1);
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) {
    if (i % 4 === 3) { out.data[i] = 255; continue; }
    const apart = Math.abs(a[i] - b[i]);
    sum += apart;
    out.data[i] = apart * factor;
  }
  canvas.getContext('2d').putImageData(out, 0, 0);
  return sum / (width * height * 3);
};

const ready = (image) => image.decode().catch(() => undefined);

const show = async () => {
  const mine = cellAt(shown), theirs = cellAt(partner.value) ?? mine;
  if (!mine) { dialog.close(); return; }
  one.src = mine.querySelector('img').src;
  one.alt = caption(mine);
  other.src = theirs.querySelector('img').src;
  other.alt = caption(theirs);
  dialog.dataset.view = view();
  stage.style.setProperty('--at', `${slide.value}%`);
  text.textContent = view() === 'slider' ? `Left: ${caption(mine)}. Right: ${caption(theirs)}.` : caption(mine);
  if (view() !== 'difference') return;
  await Promise.all([ready(one), ready(other)]);
  const mean = difference();
  text.textContent = `${caption(mine)}, against ${caption(theirs)}: mean difference ${mean.toFixed(2)} of 255 (${(mean / 2.55).toFixed(1)} %), shown × ${gain.value}.`;
};

const open = (place) => {
  shown = place;
  const chosen = cellAt(partner.value) && partner.value !== place ? partner.value : usual(place);
  partner.replaceChildren(...cells().filter((cell) => cell.dataset.place !== place).map((cell) => new Option(caption(cell), cell.dataset.place)));
  partner.value = chosen;
  for (const radio of dialog.querySelectorAll('input[name=view]')) radio.disabled = radio.value !== 'one' && !partner.options.length;
  show();
  if (!dialog.open) dialog.showModal();
};

const step = (count) => {
  const all = cells().map((cell) => cell.dataset.place);
  open(all[(all.indexOf(shown) + count + all.length) % all.length]);
};

document.addEventListener('click', (event) => {
  const cell = event.target.closest?.('.by-gallery button[data-place]');
  if (cell) { partner.value = ''; open(cell.dataset.place); }
});
dialog.addEventListener('input', show);
dialog.addEventListener('click', (event) => { if (event.target === dialog || event.target.closest('.by-tool')) dialog.close(); });
dialog.addEventListener('keydown', (event) => {
  const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (by && !event.target.closest('input, select')) { event.preventDefault(); step(by); }
});
