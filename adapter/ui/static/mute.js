/* The muted layers or heads (`kind`) as removable chips; the value is a list of numbers. Toggled by "mute" events. */

const numbers = () => (Array.isArray(props.value) ? props.value : []).map(Number);

function toggle(n) {
  const muted = numbers();
  props.value = (muted.includes(n) ? muted.filter(other => other !== n) : [...muted, n]).sort((a, b) => a - b);
}

document.addEventListener('mute', event => {
  if (element.isConnected && event.detail.kind === props.kind) toggle(event.detail.n);
});
element.addEventListener('click', event => {
  const chip = event.target.closest('[data-n]');
  if (chip) toggle(Number(chip.dataset.n));
});
