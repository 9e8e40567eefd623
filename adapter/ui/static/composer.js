/* Around the message box: pictures dropped anywhere, the keyboard and drafts. Loaded after page.js, whose `attach` it
   uses. What it relies on in Gradio is listed in gradio_internals.py. */

(() => {
  const find = (selector) => document.querySelector(selector);
  const visible = (element) => Boolean(element?.getClientRects().length);
  const box = () => [...document.querySelectorAll(".box")].find(visible);
  const FIELDS = "textarea, select, [contenteditable=true], input:not([type=radio], [type=checkbox], [type=range])";

  // What is dropped anywhere goes into the message box, and the browser never opens it. Gradio's own places for files
  // keep theirs, and text that is dropped on a field is the browser's.
  const isOurs = ({ target, dataTransfer }) =>
    dataTransfer.types.includes("Files")
      ? target.closest?.(".box") || !target.closest?.("[aria-dropeffect]")
      : !target.closest?.(FIELDS);
  const drop = async (event) => {
    find("#tabs").toggleAttribute("data-dropping", false);
    if (event.target.closest?.(FIELDS) && !event.dataTransfer.types.includes("Files")) event.stopPropagation();
    if (!isOurs(event)) return;
    event.preventDefault();
    event.stopPropagation();
    const files = [...event.dataTransfer.files];
    const text = files.length ? "" : event.dataTransfer.getData("text/plain");
    const pictures = files.filter(({ type }) => type.startsWith("image/"));
    if (!files.length && !text) return;
    if (!box()) find("#tabs [data-tab-id=chat]").click(); // the Train tab has none
    while (!box()) await new Promise(requestAnimationFrame);
    if (text) write(box().querySelector("textarea"), (old) => (old ? `${old}\n${text}` : text));
    if (pictures.length) window.chatPage.attach(pictures[0], box());
    if (files.length && files.length !== 1) window.chatPage.note("one-picture");
    else if (files.length && !pictures.length) window.chatPage.note("no-picture");
  };
  const write = (field, change) => {
    field.value = change(field.value);
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  };
  document.addEventListener("drop", drop, true);
  document.addEventListener("dragover", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    event.stopPropagation();
    find("#tabs").toggleAttribute("data-dropping", true);
  }, true);
  document.addEventListener("dragleave", (event) => event.relatedTarget || find("#tabs").toggleAttribute("data-dropping", false));

  // Keys. Gradio (6.31) makes each radio and each tab a stop of its own, and an edit has no keys.
  const showKeys = () => find("#keys dialog").showModal();
  const KEYS = { "/": () => box()?.querySelector("textarea").focus(), "?": showKeys };
  const chooseTab = (tab, key) => {
    const tabs = [...tab.parentElement.querySelectorAll("[role=tab]")];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    const next = step && tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next?.click();
    next?.focus();
  };
  const endEdit = (field, title) => {
    const buttons = field.closest(".message-row").nextElementSibling;
    buttons.querySelector(`[title="${title}"]`)?.click();
    if (title === "Cancel") requestAnimationFrame(() => buttons.querySelector('[title="Edit"], [title="Say it like this"]')?.focus());
  };
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.matches?.(".edit-textarea")) {
      const title = key === "Enter" && !event.shiftKey ? "Submit" : key === "Escape" ? "Cancel" : "";
      if (!title) return;
      event.preventDefault();
      endEdit(target, title);
    } else if (target.matches?.("[role=tab]")) {
      chooseTab(target, key);
    }
    if (!KEYS[key] || target.closest?.(FIELDS) || find("dialog[open]")) return;
    event.preventDefault();
    KEYS[key]();
  });
  let groups = 0;
  const groupStops = () => {
    for (const radio of document.querySelectorAll("fieldset input[type=radio]")) {
      const group = (radio.closest("fieldset").dataset.group ||= `group-${++groups}`);
      if (radio.name !== group) radio.name = group; // an equal one would be a change too, without end
    }
    for (const tab of document.querySelectorAll("[role=tab]"))
      tab.tabIndex = tab.getAttribute("aria-selected") === "true" ? 0 : -1;
  };

  // The picker: found by its words, and on a phone a sheet that the chip opens.
  const phone = matchMedia("(max-width: 640px)");
  const showFound = () => {
    const words = (find("#find-adapter textarea, #find-adapter input")?.value ?? "").toLowerCase();
    for (const card of document.querySelectorAll("#picker label"))
      card.toggleAttribute("data-hidden", !card.innerText.toLowerCase().includes(words) && !card.matches(".selected"));
  };
  const fitPanel = () => {
    const panel = find("#adapter-panel");
    const kind = phone.matches ? "auto" : null;
    if (!find("#picker > span") || panel.popover === kind) return;
    panel.popover = kind;
    panel.role = kind && "dialog";
    panel.ariaLabel = kind && find("#picker > span").innerText;
  };
  phone.addEventListener("change", fitPanel);
  const openAdapters = () => {
    if (phone.matches) find("#adapter-panel").showPopover();
    find("#picker input:checked").focus();
  };
  document.addEventListener("click", ({ target }) => target.closest?.("#chip") && openAdapters());
  document.addEventListener("input", ({ target }) => target.closest?.("#find-adapter") && showFound());
  Object.assign(window.chatPage, {
    // Named on a phone always, beside the picker only what does not show there.
    chip: (words, adapter, strength, mix, mixStrength) => {
      find("#chip")?.toggleAttribute("data-apart", Boolean(mix));
      const parts = [adapter || words.base, adapter && `${words.strength} ${strength}`];
      return [...parts, mix && `${words.mix} ${mix} ${mixStrength}`].filter(Boolean).join(" · ");
    },
  });

  // An unsent message outlives a reload of its tab; Gradio reloads the page when a server is back.
  const DRAFT = "llama-adapter:draft";
  const draft = (act) => {
    try {
      return act(sessionStorage);
    } catch {
      return ""; // a browser may forbid it
    }
  };
  let restored = false;
  const restoreDraft = () => {
    const field = find("#box textarea");
    if (restored || !field) return;
    restored = true;
    const text = draft((storage) => storage.getItem(DRAFT));
    if (text && !field.value) write(field, () => text);
  };
  addEventListener("pagehide", () => draft((storage) => storage.setItem(DRAFT, find("#box textarea")?.value ?? "")));

  new MutationObserver(() => {
    groupStops();
    restoreDraft();
    fitPanel();
    showFound();
  }).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["aria-selected", "name"] });
})();
