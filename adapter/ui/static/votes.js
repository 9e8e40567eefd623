/* The tally of blind votes, kept in this browser only. Gradio runs this once; the value is the newest vote's records. */

const KEY = 'llama-adapter:votes', MOST = 1000;
let votes = [];

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    if (Array.isArray(kept)) votes = kept;
  } catch { /* storage is forbidden: they last until the page is left */ }
}

function keep(changed) {
  votes = changed;
  try {
    localStorage.setItem(KEY, JSON.stringify(votes));
  } catch { /* full or forbidden */ }
  show();
}

function show() {
  const won = {}, pairs = {};
  const count = (table, adapter, strength) => {
    const name = adapter ? (strength === 1 ? adapter : `${adapter} · ${strength}`) : props.base;
    table[name] = (table[name] ?? 0) + 1;
  };
  for (const vote of votes) {
    count(won, vote.chosen_adapter, vote.chosen_strength);
    count(pairs, vote.chosen_adapter, vote.chosen_strength);
    count(pairs, vote.rejected_adapter, vote.rejected_strength);
  }
  const line = name => props.won_label.replace('{name}', name).replace('{won}', won[name] ?? 0).replace('{pairs}', pairs[name]);
  element.querySelector('p').textContent = Object.keys(pairs).map(line).join(', ') || props.none_label;
  for (const button of element.querySelectorAll('button')) button.hidden = !votes.length;
}

element.addEventListener('click', ({ target }) => {
  if (target.name === 'export') window.chatPage.save(props.file_name, votes.map(vote => JSON.stringify(vote) + '\n').join(''));
  if (target.name === 'forget') keep([]);
});
watch('value', () => {
  if (!Array.isArray(props.value) || !props.value.length) return;
  load(); // another tab may have added some
  keep([...votes, ...props.value].slice(-MOST));
});
load();
show();
