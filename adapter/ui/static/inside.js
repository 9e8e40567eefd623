/* The charts of the panel Inside in the browser. Gradio runs this once for each chart, with `element`, `trigger` and
   `watch`. One cell of a chart is in the tab order, arrow keys move from there. */

const asked = {}; // one object: for an event that had to wait Gradio sends what the one before it had (6.31)
let factors = new Map(); // of painted gates, by 'layer,head'
const items = group => [...group.querySelectorAll('button, td')];
const at = event => event.target.closest('[data-roving] :is(button, td)');

function prepare() {
  for (const group of element.querySelectorAll('[data-roving]'))
    items(group).forEach((item, index) => { item.tabIndex = index ? -1 : 0; });
  factors.clear();
}

const headings = cell => [cell.parentElement.cells[0], cell.closest('table').tHead.rows[0].cells[cell.cellIndex]]
  .map(heading => heading.textContent.trim());

function describe(cell) {
  const [row, column] = headings(cell), values = {row, column, value: cell.textContent.trim()};
  return cell.closest('table').dataset.cellText.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

element.addEventListener('keydown', event => {
  const item = at(event), group = item?.closest('[data-roving]');
  if (!group) return;
  if (['Enter', ' '].includes(event.key) && item.matches('.gates td')) {
    event.preventDefault();
    paint(item);
    return play();
  }
  const all = items(group), columns = item.matches('td') ? item.parentElement.cells.length - 1 : 1;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  const next = step ? all[all.indexOf(item) + step] : {Home: all[0], End: all.at(-1)}[event.key];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

for (const kind of ['focusin', 'mouseover']) element.addEventListener(kind, event => {
  const item = at(event);
  if (!item) return;
  if (kind === 'focusin')
    items(item.closest('[data-roving]')).forEach(other => { other.tabIndex = other === item ? 0 : -1; });
  if (!item.matches('td')) return;
  item.title = describe(item);
  item.closest('.gates, .token').querySelector('.readout').textContent = item.title;
});

element.addEventListener('click', event => {
  const button = event.target.closest('.tokens button'), tokens = button?.parentElement;
  if (!button) return;
  for (const other of items(tokens)) other.ariaPressed = String(other === button);
  trigger('token', Object.assign(asked, {index: Number(button.dataset.i), key: tokens.dataset.key}));
});

/* Gates are painted with the chosen brush: by dragging, or with Enter or the space bar on one. */
function showFactors() {
  for (const cell of element.querySelectorAll('.gates td')) {
    const factor = factors.get(String(headings(cell))) ?? 1;
    cell.classList.toggle('shut', factor < 1);
    cell.classList.toggle('loud', factor > 1);
  }
}
function paint(cell) {
  const factor = Number(document.querySelector('#inside-brush input:checked')?.value ?? 0);
  factors.set(String(headings(cell)), factor);
  showFactors();
}
const play = () => {
  const painted = [...factors].filter(([, factor]) => factor !== 1);
  trigger('play', Object.assign(asked, {gates: painted.map(([name, factor]) => [...name.split(',').map(Number), factor])}));
};
element.addEventListener('mousedown', event => event.target.closest('.gates td') && event.preventDefault()); // no text is selected
let painting = false, before;
for (const kind of ['pointerdown', 'pointerover']) element.addEventListener(kind, event => {
  const cell = event.target.closest('.gates td');
  if (!cell || event.button > 0 || (kind === 'pointerover' && !painting)) return;
  if (!painting) event.target.releasePointerCapture(event.pointerId); // or a finger would stay on the first one
  if (!painting) before = new Map(factors);
  painting = true;
  paint(cell);
});
for (const kind of ['pointerup', 'pointercancel']) document.addEventListener(kind, () => {
  if (painting && kind === 'pointerup') play();
  else if (painting) { // by a finger that scrolls
    factors = before;
    showFactors();
  }
  painting = false;
});
watch('value', prepare);
prepare();

/* The open panel asks for the charts of the newest answer once that is whole. */
let seen = null;
const look = () => {
  if (!document.querySelector('#inside > .label-wrap.open')) return (seen = null); // opened again, it asks again
  if (document.querySelector('#box .stop-button')) return (seen = null); // an equal text may be another answer's
  const shown = [...document.querySelectorAll('#chat .message')].map(row => row.textContent).join('\n');
  if (shown !== seen) trigger('look', {});
  seen = shown;
};
if (element.closest('#inside-gates')) {
  const all = {childList: true, subtree: true, characterData: true, attributeFilter: ['class']};
  for (const part of document.querySelectorAll('#chat, #box, #inside > .label-wrap'))
    new MutationObserver(look).observe(part, all);
  look();
}
