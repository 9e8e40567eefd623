/* X-ray of the answers: colours words in the bubbles by influence. Gradio runs this once, with `element`, `props`,
   `trigger` and `watch`. The value has a text for each answer, a line a token (answer_stream.py). Nothing of it becomes HTML. */

const BOUNDS = [0.5, 1.5, 3, 5]; // nats, from which a word has the next darker shade
const paint = {}, newHighlight = () => new (window.Highlight ?? Set)(); // a browser without them shows cards only
for (const side of ['above', 'below'])
  BOUNDS.forEach((_, i) => CSS.highlights?.set(`xray-${side}-${i + 1}`, paint[side + (i + 1)] = newHighlight()));
const seen = newHighlight();
CSS.highlights?.set('xray-seen', seen);
let words = []; // {bubble, range, token} in the order of the page
let current = null;
const card = document.createElement('div');
card.id = 'xray-card';
[card.popover, card.tabIndex] = ['manual', -1]; // Safari's buttons take no focus, which the card keeps then
card.setAttribute('role', 'status');
element.append(card);

const isOn = () => Boolean(document.querySelector('#xray-switch input')?.checked);
// Also one that is being edited, so that the others keep their numbers.
const bubbles = () => [...document.querySelectorAll(
  '#chat .bot-row :is([data-testid="bot"]:not(:has(.aside)), .edit-textarea)')];

function draw() {
  Object.values(paint).forEach(highlight => highlight.clear());
  const before = current;
  words = [];
  bubbles().forEach((bubble, i) => {
    const lines = isOn() && props.value?.[i], tokens = lines ? lines.split('\n').map(line => JSON.parse(line)) : [];
    if (!tokens.length) return bubble.removeAttribute('tabindex');
    findWords(bubble, tokens);
    bubble.tabIndex = 0;
  });
  current = words.find(word => word.bubble === before?.bubble && word.n === before.n) ?? null;
  if (before && !current) hide();
}

/* Finds each token in the bubble's text, behind the one before. What Markdown does not show is passed over. */
function findWords(bubble, tokens) {
  const walker = document.createTreeWalker(bubble, NodeFilter.SHOW_TEXT), nodes = [];
  let text = '';
  while (walker.nextNode()) {
    nodes.push([text.length, walker.currentNode]);
    text += walker.currentNode.data;
  }
  const point = at => {
    const [start, node] = nodes.findLast(([first]) => first <= at);
    return [node, at - start];
  };
  let at = 0, held; // of a character that takes several tokens: the first one, with the numbers of all
  for (const [i, [part, own, base, ...lists]] of tokens.entries()) {
    held = held ? [held[0], part, held[2] + own, held[3] + base, ...held.slice(4)] : [i, part, own, base, ...lists];
    if (!part) continue;
    const [n, ...token] = held;
    held = undefined;
    const word = token[0].trim(), found = word ? text.indexOf(word, at) : -1;
    if (found < 0 || found - at > (/[\p{L}\p{N}]/u.test(word) ? 40 : 2)) continue;
    at = found + word.length;
    const range = new Range(), [last, end] = point(at - 1);
    range.setStart(...point(found));
    range.setEnd(last, end + 1);
    words.push({bubble, n, range, token});
    const influence = token[1] - token[2], shade = BOUNDS.filter(bound => Math.abs(influence) >= bound).length;
    if (shade) paint[(influence > 0 ? 'above' : 'below') + shade].add(range);
  }
}

const percent = logprob => {
  const p = 100 * Math.exp(logprob);
  return p < 0.1 ? '< 0.1 %' : `${p.toFixed(p < 10 ? 1 : 0)} %`;
};

function show(word) {
  if (word === current) return;
  current = word;
  const [text, logprob, base, top, own] = word.token;
  const line = (textContent, className = '') => Object.assign(document.createElement('p'), {textContent, className});
  // Of the newest answer another word can be pressed, unless it ends the answer: it is written anew from there.
  const isNewest = () => [...document.querySelectorAll('#chat :is(.user-row, .bot-row:not(:has(.aside)))')].at(-1)?.contains(word.bubble);
  const list = (title, words) => {
    const column = document.createElement('div');
    column.append(line(title), ...words.map(([other, value, id]) => {
      const open = isNewest() && id !== undefined && other.trim() !== text.trim() && !/\ufffd|^<[|/].*>$/.test(other);
      const row = Object.assign(document.createElement(open ? 'button' : 'p'), {className: 'top'});
      row.textContent = other.trim() || JSON.stringify(other);
      row.dataset.p = percent(value);
      row.style.setProperty('--p', Math.exp(value));
      if (open) row.onclick = () => { isNewest() && trigger('submit', {index: word.n, token: id}); hide(); };
      return row;
    }));
    return column;
  };
  const lists = Object.assign(document.createElement('div'), {className: 'lists'});
  if (own?.length) lists.append(list(props.own, own));
  lists.append(list(props.instead, top));
  card.replaceChildren(line(text.trim(), 'word'), line(props.both.replace('{}', percent(logprob)).replace('{}', percent(base))), lists);
  seen.clear();
  seen.add(word.range);
  if (!card.matches(':popover-open')) card.showPopover();
  place();
}

/* Beside its word, which may scroll, and away when that is out of sight. */
function place() {
  const {left, top: upper, bottom} = current.range.getBoundingClientRect(), {width, height} = card.getBoundingClientRect();
  const view = document.querySelector('#chat').getBoundingClientRect();
  if (bottom < view.top || upper > view.bottom) return hide();
  card.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  card.style.top = `${bottom + height + 8 < innerHeight ? bottom + 6 : Math.max(8, upper - height - 6)}px`;
}

let leaving = 0, pointed; // a pointer on its way from the word to its card
function hide() {
  clearTimeout(leaving);
  if (card.contains(document.activeElement)) current?.bubble.focus({preventScroll: true});
  current = pointed = null;
  seen.clear();
  if (card.matches(':popover-open')) card.hidePopover();
}

const under = ({clientX: x, clientY: y, target}) => words.find(({bubble, range}) => bubble.contains(target) &&
  [...range.getClientRects()].some(r => x >= r.left && x <= r.right && y >= r.top && y <= r.bottom));
for (const kind of ['pointermove', 'click']) document.addEventListener(kind, event => {
  if (event.type === 'pointermove' && event.pointerType === 'touch') return; // a finger scrolls
  const word = isOn() && event.target.closest?.('#chat') ? under(event) : null;
  if (word && word === pointed && kind === 'pointermove') return; // its card is open, or opens
  clearTimeout(leaving);
  pointed = word;
  if (word) leaving = setTimeout(show, kind === 'click' ? 0 : 150, word); // not what a pointer passes on its way
  else if (current && !card.contains(event.target)) leaving = setTimeout(hide, kind === 'click' ? 0 : 400);
});
document.addEventListener('scroll', () => current && place(), true);
document.addEventListener('focusout', ({target, relatedTarget: to}) => {
  if (current && (target === current.bubble || card.contains(target)) && to !== current.bubble && !card.contains(to)) hide();
});

/* In a focused bubble the arrow keys move from word to word, and down into its card. */
document.addEventListener('keydown', event => {
  if (event.key === 'Escape' && current) {
    event.preventDefault();
    hide();
  }
  const down = {ArrowUp: -1, ArrowDown: 1}[event.key], choices = [...card.querySelectorAll('button')];
  if (down && current && (event.target === current.bubble || card.contains(event.target)) && choices.length) {
    event.preventDefault();
    const next = choices[choices.indexOf(document.activeElement) + down];
    return (next ?? (down < 0 ? current.bubble : choices.at(-1))).focus({preventScroll: true});
  }
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], own = words.filter(({bubble}) => bubble === event.target);
  if (!step || !own.length || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(own[Math.max(0, Math.min(own.length - 1, own.indexOf(current) + step))]);
}, true);

let due = 0;
const redraw = () => {
  cancelAnimationFrame(due);
  due = requestAnimationFrame(draw);
};
watch('value', redraw);
document.addEventListener('change', event => {
  if (!event.target.closest?.('#xray-switch')) return;
  redraw();
  localStorage.setItem('llama-adapter:xray', event.target.checked ? 'on' : 'off');
});
const chat = document.querySelector('#chat');
if (chat) new MutationObserver(() => (isOn() || words.length) && redraw()).observe(chat, {childList: true, subtree: true, characterData: true});
