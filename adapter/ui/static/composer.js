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
    if (key !== "/" || target.closest?.(FIELDS) || find("dialog[open]")) return;
    event.preventDefault();
    box()?.querySelector("textarea").focus();
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

  // Who answers: the description of the adapter that is chosen, or under the mouse, and of an empty chat its film.
  const chosen = () => find("#picker input:checked");
  const nameChips = () => {
    for (const label of document.querySelectorAll("#picker label")) {
      const [name] = label.textContent.trim().split("\n");
      if (label.dataset.name !== name) label.dataset.name = name; // page.css shows it alone
    }
  };
  const describe = (label = chosen()?.closest("label")) => {
    const line = find("#description");
    const text = (label?.textContent ?? "").trim().split("\n").slice(1).join(" · ");
    if (line && line.textContent !== text) line.textContent = text;
  };
  const showFilm = () => {
    const [chat, strength] = [find("#chat"), find("#strength input[type=range]")];
    if (!chat || !strength || !chosen()) return;
    const films = [...document.querySelectorAll("#chat .film")];
    // The frozen base is what every film begins with.
    const film = films.find((one) => one.matches(`.film-${CSS.escape(chosen().value)}`)) ?? (chosen().value ? null : films[0]);
    for (const one of films) one.toggleAttribute("data-shown", one === film);
    chat.dataset.frame = chosen().value ? Math.round(2 * strength.value) : 0;
  };
  const onLabel = ({ target }) => describe(target.closest?.("#picker label") ?? undefined);
  for (const type of ["pointerover", "focusin"]) document.addEventListener(type, onLabel);
  document.addEventListener("input", ({ target }) => target.closest?.("#strength, #picker") && showFilm());
  document.addEventListener("llama-adapter:settings", () => requestAnimationFrame(showFilm));

  // The drawer: Esc closes it.
  const drawer = () => find("#more > .label-wrap");
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || !event.target.closest?.("#more")) return;
    if (!drawer().matches(".open") || event.target.closest("[aria-expanded=true]:not(.label-wrap)")) return;
    event.preventDefault();
    drawer().click();
    drawer().focus();
  }, true);

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
    nameChips();
    describe(find("#picker label:hover") ?? undefined);
    showFilm();
    for (const button of document.querySelectorAll(".gr-accordion > .label-wrap")) {
      const open = String(button.matches(".open"));
      if (button.ariaExpanded !== open) button.ariaExpanded = open;
    }
  }).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["aria-selected", "name", "class", "data-testid"] });
})();
