/* The server's state, copies, keys and focus, pictures that are dropped, names for those who do not see. Loaded after
   conversations.js. Its texts come from data-… attributes. Sends no requests. */

(() => {
  document.body.lang = "en"; // Gradio gives the document the browser's language, and names its buttons in it
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const visible = (element) => Boolean(element?.getClientRects().length);
  const box = () => all(".box").find(visible);
  const write = (field, text) => {
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const FIELDS = "textarea, select, [contenteditable=true], input:not([type=radio], [type=checkbox], [type=range])";

  // The status line is red while the server does not answer what the page asks it every few seconds.
  const LATE_MS = 20_000;
  const showServer = (isUp) => find("#top")?.toggleAttribute("data-server-gone", !isUp);
  // Gradio's server ends the stream of results when it knows of no event under way. An event that begins at that moment
  // takes the old stream to be open, and would wait for its results for ever (6.31). Any other event opens a new one.
  let [streams, missed] = [0, false];
  const trackStream = ({ signal } = {}) => {
    streams += 1;
    missed = false;
    signal?.addEventListener("abort", () => {
      streams -= 1;
      if (missed) setTimeout(() => missed && !streams && window.chatPage.act(""), 50);
    });
  };
  // It also takes a stream that a proxy ends to be open still, and hears nothing more: the page is loaded anew.
  let cut = false;
  const watchStream = async (body, { signal }) => {
    await body.pipeTo(new WritableStream()).catch(() => {});
    setTimeout(() => (cut ||= !signal.aborted), 1000); // Gradio aborts it when the server has closed it
  };
  const { fetch } = window;
  window.fetch = async (...asked) => {
    const path = String(asked[0]?.url ?? asked[0]);
    const [regular, joins, streamed] = [/\/(run\/predict|app_id)(\?|$)/, /\/queue\/join/, /\/queue\/data/].map((one) => one.test(path));
    const late = regular && setTimeout(() => showServer(false), LATE_MS);
    if (streamed) trackStream(asked[0]);
    let response;
    try {
      response = await fetch(...asked);
      if (streamed && response.ok) watchStream(response.clone().body, asked[0]);
      return response;
    } finally {
      clearTimeout(late);
      if (regular) showServer(response?.status < 502); // a proxy may answer for it
      if (regular && (response?.status === 401 || (cut && response?.ok))) location.reload(); // 401: the server began anew
      if (joins && response && streams) missed = true; // maybe
      if (joins && response && !response.ok) window.chatPage.refused(); // an event ends without a result
    }
  };

  // Removes the invisible characters that chatbot.py adds from what is copied. Of a table only its JSON is copied.
  const jsonOfTable = (text) => {
    if (!text.startsWith('<div class="json-answer">')) return null;
    return new DOMParser().parseFromString(text, "text/html").querySelector(".json-answer code")?.textContent;
  };
  const unescapeMarkup = (text) => jsonOfTable(text) ?? text.replace(/([<&!\\`$])\u2060/g, "$1");
  document.addEventListener("copy", (event) => {
    const { target } = event;
    const field = target.matches?.("textarea, input");
    const text = field ? target.value.slice(target.selectionStart, target.selectionEnd) : String(getSelection());
    if (unescapeMarkup(text) === text) return;
    event.clipboardData.setData("text/plain", unescapeMarkup(text));
    event.preventDefault();
  });
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(unescapeMarkup(text));
  }

  // A picture that is dropped anywhere is pasted into the message box, but on Gradio's own places for files.
  const drag = (event) => {
    const { target, dataTransfer, type } = event;
    const ours = dataTransfer.types.includes("Files") && (target.closest?.(".box") || !target.closest?.("[aria-dropeffect]"));
    find("#tabs").toggleAttribute("data-dropping", Boolean(ours) && type === "dragover");
    if (!ours) return false;
    event.preventDefault();
    event.stopPropagation();
    return true;
  };
  const drop = async (event) => {
    if (!drag(event)) return;
    const files = [...event.dataTransfer.files];
    const picture = files.find(({ type }) => type.startsWith("image/"));
    if (!picture || files.length > 1) window.chatPage.act(picture ? "ONE_PICTURE" : "NO_PICTURE");
    if (!picture) return;
    if (!box()) find("#tabs [data-tab-id=chat]").click(); // the Train tab has none
    while (!box()) await new Promise(requestAnimationFrame);
    const [into, pasted] = [box(), new ClipboardEvent("paste", { clipboardData: new DataTransfer(), bubbles: true })];
    into.querySelector(".thumbnail-item .delete-button")?.click(); // the box holds one picture
    await new Promise((done) => setTimeout(done, 100));
    pasted.clipboardData.items.add(picture); // Firefox gives it data of its own in place of those named
    const field = into.querySelector("textarea");
    field.dispatchEvent(pasted);
    field.focus();
  };
  // Programs put a picture of a text beside the text: the text is meant.
  const paste = (event) => {
    const { target, clipboardData } = event;
    const files = [...clipboardData.files];
    if (!target.closest?.(".box textarea")) return;
    if (clipboardData.getData("text/plain").trim()) event.stopImmediatePropagation();
    else if (files.length && !files.some(({ type }) => type.startsWith("image/"))) window.chatPage.act("NO_PICTURE");
  };
  document.addEventListener("paste", paste, true);
  document.addEventListener("drop", drop, true);
  document.addEventListener("dragover", drag, true);
  document.addEventListener("dragleave", (event) => event.relatedTarget || find("#tabs").toggleAttribute("data-dropping", false));

  // Keys. Esc puts an edit back, closes the drawer or stops the answer of the visible tab.
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.isComposing || event.keyCode === 229 || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const [edits, drawer] = [target.matches?.(".edit-textarea"), find("#more > .label-wrap.open")];
    if (edits && (key === "Escape" || (key === "Enter" && !event.shiftKey))) {
      const buttons = target.closest(".message-row").nextElementSibling;
      buttons.querySelectorAll("button")[key === "Enter" ? 0 : 1]?.click(); // their names are of the browser's language
      requestAnimationFrame(() => buttons.querySelector("button:last-of-type")?.focus());
    } else if (key === "Escape") {
      if (find("dialog[open], :popover-open") || target.closest?.("[role=listbox], [aria-expanded=true]:not(.label-wrap)")) return;
      if (!drawer || (target !== document.body && !target.closest?.("#more"))) return all(".box .stop-button").find(visible)?.click();
      drawer.click();
      drawer.focus();
    } else if ((key === "Enter" || key === " ") && target.matches?.("#chat .divider")) {
      target.click();
    } else if (key === "/" && !target.closest?.(FIELDS) && !find("dialog[open]")) {
      box()?.querySelector("textarea").focus();
    } else return;
    event.preventDefault();
  });

  // An answer that begins is shown. After it the message box gets the focus, unless one works elsewhere, or a phone's
  // keyboard would cover it. What was typed meanwhile stays below the message of one that failed, which the server puts
  // in its place, maybe twice: until a key or the mouse is used.
  let [answering, typed] = [null, ""];
  addEventListener("input", ({ target }) => answering?.matches("#box") && target.matches?.("#box textarea") && (typed = target.value), true);
  for (const type of ["pointerdown", "keydown"]) addEventListener(type, () => answering || (typed = ""), true);
  const restoreFocus = () => {
    const ended = answering;
    answering = all(".box").find((one) => visible(one.querySelector(".stop-button"))) ?? null;
    if (answering && !ended) showEnd();
    const newest = !answering && all("#chat [data-testid=bot]:not(:has(.stats, .divider))").at(-1)?.textContent;
    if (newest && find("#said").textContent !== newest) find("#said").textContent = newest; // an answer may take no frame
    const field = find("#box textarea");
    if (!field?.value) typed = ""; // it was sent
    else if (!answering && !field.value.endsWith(typed.trim())) write(field, `${field.value}\n\n${typed}`);
    if (answering || !visible(ended) || !matchMedia("(hover: hover)").matches || find("#chat .edit-textarea") || String(getSelection())) return;
    const focused = document.activeElement;
    if (!focused || focused === document.body || ended.contains(focused) || focused.closest("#chat :is(.message-buttons, .options)") || !visible(focused))
      ended.querySelector("textarea")?.focus({ preventScroll: true });
  };
  // Accessibility that Gradio lacks (6.31): its list of examples has no items, its message box and pictures have
  // no name, the keyboard does not reach a card or code that scrolls, and each radio is a stop of its own.
  const setAttribute = (selector, name, value) => all(selector).forEach((element) => element.setAttribute(name, value));
  // Nor does a list stay open where its HTML is updated, as each word of another pane does in Compare.
  const opened = new WeakMap();
  addEventListener("click", ({ target }) => {
    const list = target.closest?.("#answers summary, #corrections summary")?.parentElement;
    if (list) opened.set(list, !list.open);
  }, true);
  let groups = 0;
  const fixAccessibility = () => {
    for (const list of all("#answers details, #corrections details")) if (opened.get(list)) list.open = true;
    const { film, filmName, before, after, message = "", picture = "", correct = "" } = find("#head h1")?.dataset ?? {};
    const icons = { [film]: filmName, "‹": before, "›": after };
    for (const option of all("#chat .option")) option.ariaLabel = option.title = icons[option.textContent.trim()] ?? "";
    setAttribute(":is(.box textarea, #chat .edit-textarea):not([aria-label])", "aria-label", message);
    setAttribute(":is(#chat .examples, .thumbnail-wrapper):is([role=list], [role=listitem])", "role", "group");
    setAttribute(":is(#answers, .toast-wrap):not([aria-live])", "aria-live", "polite");
    setAttribute("#chat .bubble-wrap:not([aria-live=off])", "aria-live", "off"); // Gradio writes all of it anew with each word
    setAttribute("#chat .image-container button:not([aria-label])", "aria-label", picture);
    setAttribute(":is(#about .prose, #chat pre):not([tabindex])", "tabindex", "0");
    for (const [name, value] of [["tabindex", "0"], ["role", "button"]]) setAttribute(`#chat .divider:not([${name}])`, name, value);
    const edited = find("#chat .edit-textarea")?.closest(".message-row").nextElementSibling; // its buttons are others
    for (const pencil of all("#chat .message-buttons button ~ button:last-of-type")) {
      const name = edited?.contains(pencil) ? pencil.title : pencil.closest(".message-buttons-left") ? correct : "Edit";
      if (pencil.title !== name) pencil.title = pencil.ariaLabel = name;
    }
    all('#chat [data-testid][aria-label*="<"]').forEach((message) => message.removeAttribute("aria-label")); // markup
    for (const radio of all("fieldset input[type=radio]")) {
      const group = (radio.closest("fieldset").dataset.group ||= `group-${++groups}`);
      radio.closest("fieldset").ariaLabel ??= radio.closest("fieldset").querySelector("[data-testid=block-info]")?.textContent ?? "";
      if (radio.name !== group) radio.name = group; // an equal one would be a change too, without end
    }
    for (const button of all(".gr-accordion > .label-wrap")) {
      const open = String(button.matches(".open"));
      if (button.ariaExpanded !== open) button.ariaExpanded = open;
      if (button.parentElement.id === "more") find("#room").toggleAttribute("data-drawer", open === "true");
    }
  };

  // The end of a chat stays in sight where the dock grows and when a message is sent, and the beginning of an empty one.
  // Gradio (6.31) scrolls on though one reads further up, and an empty chat to its end.
  const log = () => find("#chat .bubble-wrap");
  let [atEnd, last, byUser, dock, empty] = [true, 0, false, null, null];
  const showEnd = () => (atEnd = true) && !empty && log()?.scrollTo(0, log().scrollHeight);
  const watchSize = () => {
    const wrap = log();
    if (wrap && !Object.hasOwn(wrap, "scrollTo"))
      wrap.scrollTo = (...to) => (atEnd || empty) && Element.prototype.scrollTo.apply(wrap, to);
    if (!dock && (dock = find("#dock"))) new ResizeObserver(() => atEnd && showEnd()).observe(dock);
    const shown = find("#chat .placeholder-content");
    if (shown && shown !== empty) byUser = false;
    empty = shown;
    document.body?.toggleAttribute("data-empty", Boolean(empty));
    find("#talk")?.toggleAttribute("data-answered", Boolean(find("#chat .stats")));
  };
  for (const type of ["wheel", "touchmove", "pointerdown", "keydown"]) addEventListener(type, () => (byUser = true), true);
  addEventListener("click", ({ target }) => target.closest?.("#chat .scroll-down-button-container") && showEnd(), true);
  document.addEventListener("scroll", ({ target }) => {
    if (target !== log()) return;
    const top = target.scrollTop;
    if (target.scrollHeight - top - target.clientHeight < 8) atEnd = true;
    else if (top < last) atEnd = false;
    last = top;
    if (empty && !byUser) target.scrollTo(0, 0);
  }, true);

  // Who answers: the description of the adapter that is chosen, or under the mouse, and of an empty chat its film.
  const chosen = () => find("#picker input:checked");
  const describe = (label = find("#picker label:hover") ?? chosen()?.closest("label")) => {
    const line = find("#description");
    const text = (label?.textContent ?? "").trim().split("\n").slice(1).join(" · ");
    if (line && line.textContent !== text) line.textContent = text;
  };
  const showFilm = () => {
    const [chat, strength, name, mixed] = [find("#chat"), find("#strength input[type=range]"), chosen()?.value, find("#mix input")?.value];
    for (const label of all("#picker label")) {
      const [name] = label.textContent.trim().split("\n");
      if (label.dataset.name !== name) label.dataset.name = name; // page.css shows it alone
      label.toggleAttribute("data-mixed", name === mixed);
    }
    if (!chat || !strength || name === undefined) return;
    const films = all("#chat .film");
    // The frozen base is what every film begins with.
    const film = films.find((one) => one.matches(`.film-${CSS.escape(name)}`)) ?? (name ? null : films[0]);
    for (const one of films) one.toggleAttribute("data-shown", one === film);
    chat.dataset.film = /film-(\S+)/.exec(film?.className)?.[1] ?? "";
    chat.toggleAttribute("data-base", !name);
    chat.dataset.frame = name ? Math.round(2 * strength.value) : 0;
    find("#strength").dataset.strength = strength.value;
  };
  for (const type of ["pointerover", "focusin"]) document.addEventListener(type, ({ target }) => describe(target.closest?.("#picker label") ?? undefined));
  document.addEventListener("input", ({ target }) => target.closest?.("#strength, #picker") && showFilm());
  document.addEventListener("llama-adapter:settings", () => requestAnimationFrame(showFilm));

  // Corrections are read when a page is loaded: one that is behind another tab's is loaded anew before it changes them.
  let isBehind = false; // each load encrypts what is kept anew, in the same length
  addEventListener("storage", ({ key, oldValue, newValue }) => (isBehind ||= key?.endsWith(":corrections") && oldValue?.length !== newValue?.length));
  addEventListener("click", (event) => isBehind && event.target.closest?.('#teach button, #chat [title="Say it like this"]') && [event.stopImmediatePropagation(), location.reload()], true);

  // Unsent words outlive a reload of their tab, which Gradio does when a server is back and a phone to hidden ones.
  const DRAFT = "llama-adapter:draft ";
  const restored = new Set();
  const restoreDrafts = () => {
    for (const name of ["#box textarea", "#ask textarea", "#train-rows textarea"]) {
      const [field, text] = [find(name), sessionStorage.getItem(DRAFT + name)];
      if (restored.has(name) || !field) continue;
      restored.add(name);
      if (!text || field.value) continue;
      write(field, text);
      if (field.closest("#box")) field.focus();
    }
  };
  addEventListener("visibilitychange", () => [...restored].filter(find).forEach((name) => sessionStorage.setItem(DRAFT + name, find(name).value)));

  // What the rows of the chat hold, for the style sheets: by :has() the browser would look through all of them at each
  // word of an answer.
  const HELD = ["aside", "component", "divider", "json-answer", "katex", "note", "offer", "stats"];
  const markRows = (changes) => {
    const changed = changes.map(({ target }) => target.closest(".message-row")).filter(Boolean);
    const added = all("#chat .message-row:not([data-holds])");
    if (added.some((row) => row.matches(".user-row"))) showEnd();
    for (const row of new Set([...changed, ...added]))
      row.dataset.holds = HELD.filter((name) => row.querySelector(`.${name}`)).join(" ");
  };

  let due = false;
  const onChange = () => [restoreFocus, fixAccessibility, watchSize, restoreDrafts, describe, showFilm].forEach((act) => act());
  addEventListener("DOMContentLoaded", onChange);
  const attributeFilter = ["aria-selected", "name", "class", "data-testid"];
  const observer = new MutationObserver((changes) => {
    markRows(changes);
    if (!due) requestAnimationFrame(() => (due = false) || onChange());
    due = true;
  });
  observer.observe(document.documentElement, { childList: true, subtree: true, attributeFilter });
})();
