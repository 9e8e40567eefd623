/* The chips of what is muted: a list of numbers is the value, `kind` says of what. Others ask by a 'mute' event. */

const numbers = () => (Array.isArray(props.value) ? props.value : []).map(Number);

function toggle(n) {
  const now = numbers();
  props.value = (now.includes(n) ? now.filter(other => other !== n) : [...now, n]).sort((a, b) => a - b);
}

document.addEventListener('mute', event => {
  if (element.isConnected && event.detail.kind === props.kind) toggle(event.detail.n);
});
element.addEventListener('click', event => {
  const chip = event.target.closest('[data-n]');
  if (chip) toggle(Number(chip.dataset.n));
});
