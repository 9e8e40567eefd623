/* The charts of the panel Inside in the browser. Gradio runs this once for each chart, with `element`, `trigger` and
   `watch`. One cell of a chart is in the tab order, arrow keys move from there. */

const factors = new Map(); // of painted gates, by 'layer,head'
const items = group => [...group.querySelectorAll('button, td')];

function prepare() {
  for (const group of element.querySelectorAll('[data-roving]')) {
    items(group).forEach((item, index) => { item.tabIndex = index ? -1 : 0; });
    group.querySelectorAll('[aria-pressed]').forEach(item => item.removeAttribute('aria-pressed'));
  }
  for (const out of element.querySelectorAll('.readout')) out.textContent = '';
  factors.clear();
  showFactors();
}

function neighbour(group, item, key) {
  const cell = item.closest('td');
  if (!cell) {
    const all = items(group), at = all.indexOf(item);
    return {ArrowLeft: all[at - 1], ArrowRight: all[at + 1], ArrowUp: all[at - 1], ArrowDown: all[at + 1],
            Home: all[0], End: all.at(-1)}[key];
  }
  const rows = [...group.rows], row = rows.indexOf(cell.parentElement), column = cell.cellIndex;
  const at = (r, c) => [rows[r]?.cells[c]].find(other => other?.matches('td'));
  return {ArrowLeft: at(row, column - 1), ArrowRight: at(row, column + 1), ArrowUp: at(row - 1, column),
          ArrowDown: at(row + 1, column), Home: at(row, 1), End: at(row, rows[row].cells.length - 1)}[key];
}

function describe(cell) {
  const table = cell.closest('table');
  const values = {row: cell.parentElement.cells[0].innerText.trim(),
                  column: table.tHead.rows[0].cells[cell.cellIndex].innerText.trim(), value: cell.innerText.trim()};
  return table.dataset.cellText.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

element.addEventListener('keydown', event => {
  const item = event.target.closest('button, td'), group = item?.closest('[data-roving]');
  const next = group && neighbour(group, item, event.key);
  if (!next) return;
  event.preventDefault();
  next.focus();
});

for (const kind of ['focusin', 'mouseover']) element.addEventListener(kind, event => {
  const item = event.target.closest('button, td'), group = item?.closest('[data-roving]');
  if (!group) return;
  if (kind === 'focusin') items(group).forEach(other => { other.tabIndex = other === item ? 0 : -1; });
  if (!item.matches('td')) return;
  item.title = describe(item);
  item.closest('.gates, .token').querySelector('.readout').textContent = item.title;
});

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button?.dataset.i) return;
  const tokens = button.closest('.tokens');
  for (const other of tokens.querySelectorAll('button')) other.toggleAttribute('aria-pressed', false);
  button.setAttribute('aria-pressed', 'true');
  trigger('token', {index: Number(button.dataset.i), key: tokens.dataset.key});
});

/* Gates are painted with the chosen brush: by dragging, or with Enter or the space bar on one. */
const nameOf = cell => {
  const [layer, head] = [cell.parentElement.cells[0], cell.closest('table').tHead.rows[0].cells[cell.cellIndex]]
    .map(heading => heading.textContent.trim());
  return `${layer},${head}`;
};
function showFactors() {
  for (const cell of element.querySelectorAll('.gates td')) {
    const factor = factors.get(nameOf(cell)) ?? 1;
    cell.classList.toggle('shut', factor < 1);
    cell.classList.toggle('loud', factor > 1);
  }
}
function paint(cell) {
  const factor = Number(document.querySelector('#inside-brush input:checked')?.value ?? 0), name = nameOf(cell);
  if (factor === 1) factors.delete(name);
  else factors.set(name, factor);
  showFactors();
}
const play = () => trigger('play', {gates: [...factors].map(([name, factor]) => [...name.split(',').map(Number), factor])});
let painting = false;
element.addEventListener('pointerdown', event => {
  const cell = event.target.closest('.gates td');
  if (!cell) return;
  event.target.releasePointerCapture(event.pointerId); // or a finger would stay on the first one
  painting = true;
  paint(cell);
});
element.addEventListener('pointerover', event => {
  const cell = event.target.closest('.gates td');
  if (painting && cell) paint(cell);
});
for (const kind of ['pointerup', 'pointercancel']) document.addEventListener(kind, () => {
  if (painting) play();
  painting = false;
});
element.addEventListener('keydown', event => {
  if (!['Enter', ' '].includes(event.key) || !event.target.matches('.gates td')) return;
  event.preventDefault();
  paint(event.target);
  play();
});
watch('value', prepare);
prepare();

/* The open panel asks for the charts of the newest answer once that is whole. */
let seen = '';
const look = () => {
  const rows = [...document.querySelectorAll('#chat .message')], shown = `${rows.length} ${rows.at(-1)?.innerText}`;
  const busy = document.querySelector('#box .stop-button');
  if (busy || shown === seen || !document.querySelector('#inside > .label-wrap.open')) return;
  seen = shown;
  trigger('look', {});
};
if (element.closest('#inside-gates')) {
  for (const part of document.querySelectorAll('#chat, #box, #inside > .label-wrap'))
    new MutationObserver(look).observe(part, {childList: true, subtree: true, characterData: true, attributeFilter: ['class']});
  look();
}

