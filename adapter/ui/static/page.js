/* The page's behaviour in the browser: keys and focus. Conversations are in conversations.js.
   Knows the elements' ids; its texts come from data-… attributes. Sends no requests. What it relies on in Gradio is
   listed in gradio_internals.py. */

(() => {
  const find = (selector) => document.querySelector(selector);
  const visible = (element) => Boolean(element?.getClientRects().length);

  // Gradio's server ends the stream of results when it knows of no event under way. An event that begins at that moment
  // takes the old stream to be open, and would wait for its results for ever (6.31). Any other event opens a new one.
  let [streams, missed] = [0, false];
  const streamIs = ({ signal } = {}) => {
    streams += 1;
    missed = false;
    signal?.addEventListener("abort", () => {
      streams -= 1;
      if (missed) setTimeout(() => missed && !streams && window.chatPage.note(""), 50);
    });
  };
  // The status line is red while the server does not answer what the page asks it every few seconds.
  const LATE_MS = 20_000;
  const serverIs = (there) => find("#top")?.toggleAttribute("data-server-gone", !there);
  const { fetch } = window;
  window.fetch = async (...asked) => {
    const path = String(asked[0]?.url ?? asked[0]);
    const regular = /\/(run\/predict|app_id)$/.test(path);
    const late = regular && setTimeout(() => serverIs(false), LATE_MS);
    if (path.includes("/queue/data")) streamIs(asked[0]);
    try {
      const response = await fetch(...asked);
      if (regular) serverIs(true);
      if (path.includes("/queue/join") && streams) missed = true; // maybe
      if (path.includes("/queue/join") && !response.ok) window.chatPage.refused(); // an event ends without a result
      return response;
    } catch (error) {
      if (regular) serverIs(false);
      if (path.includes("/queue/join")) window.chatPage.refused();
      throw error;
    } finally {
      clearTimeout(late);
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

  // The button beside the JSON behind a table.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".json-answer button");
    if (!button) return;
    const copied = await window.chatPage.copy(button.parentElement.querySelector("code").textContent);
    button.classList.toggle("copied", Boolean(copied));
  });

  // Esc stops the answer of the visible tab.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    if (find("dialog[open], :popover-open") || event.target.closest?.("[role=listbox], [aria-expanded=true], .edit-textarea")) return;
    [...document.querySelectorAll(".box .stop-button")].find(visible)?.click();
  });

  // After an answer the message box gets the focus again, unless the user is working elsewhere, or on a phone, whose
  // keyboard would cover the answer.
  let answering = null;
  const restoreFocus = () => {
    const box = [...document.querySelectorAll(".box")].find((one) => visible(one.querySelector(".stop-button")));
    if (box) {
      answering = box;
      return;
    }
    const ended = answering;
    answering = null;
    const focused = document.activeElement;
    const free =
      !focused || focused === document.body || ended?.contains(focused) || focused.closest("#chat") || !visible(focused);
    if (ended && visible(ended) && free && matchMedia("(hover: hover)").matches && !find("#chat .edit-textarea")) {
      ended.querySelector("textarea")?.focus({ preventScroll: true });
    }
  };
  // Accessibility that Gradio lacks (6.31): its list of examples has no items, its message box and pictures have
  // no name, and the keyboard does not reach a card or code that scrolls.
  const setAttribute = (selector, name, value) => {
    for (const element of document.querySelectorAll(selector)) element.setAttribute(name, value);
  };
  const names = () => find("#head h1")?.dataset ?? {};
  const fixAccessibility = () => {
    for (const option of document.querySelectorAll("#chat .option")) // an icon
      if (option.textContent.trim() === names().film) option.ariaLabel = option.title = names().filmName;
    setAttribute(".box textarea:not([aria-label])", "aria-label", names().message ?? "");
    setAttribute("#chat .examples[role=list]", "role", "group");
    setAttribute("#chat .image-container button:not([aria-label])", "aria-label", names().picture ?? "");
    setAttribute(":is(#about .prose, #chat pre):not([tabindex])", "tabindex", "0");
    const correct = names().correct ?? "";
    for (const name of ["title", "aria-label"]) {
      setAttribute(`#chat .message-buttons-left [${name}="Edit"]`, name, correct);
      setAttribute(`#chat .message-buttons-right [${name}="${correct}"]`, name, "Edit"); // a row that was an answer's
    }
  };
  // An edit begins at the beginning of a text: Gradio (6.31) shows its end.
  const showBeginning = () => {
    for (const field of document.querySelectorAll("#chat .edit-textarea:not([data-begun])")) {
      field.dataset.begun = "";
      requestAnimationFrame(() => {
        field.setSelectionRange(0, 0);
        field.scrollTop = 0;
      });
    }
  };
  const onChange = () => {
    restoreFocus();
    fixAccessibility();
    showBeginning();
  };
  addEventListener("DOMContentLoaded", onChange);
  new MutationObserver(onChange).observe(document.documentElement, { childList: true, subtree: true });

  // A picture that was dropped is pasted into the message box.
  const attach = async (file, box = find("#box")) => {
    box.querySelector(".thumbnail-item .delete-button")?.click(); // the box holds one picture
    await new Promise((done) => setTimeout(done, 100));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(file);
    const field = box.querySelector("textarea");
    field.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
    field.focus();
  };
  window.chatPage.attach = attach; // for composer.js

  // How much of what the base reads the conversation has, by the record of its newest answer.
  const recordOf = (log) => {
    try {
      return JSON.parse(log) ?? {};
    } catch {
      return {}; // no record, or what the X-ray keeps
    }
  };
  window.chatPage.contextLine = (messages, [line, warning]) => {
    for (const { metadata } of [...(messages ?? [])].reverse()) {
      const { context_tokens: tokens, context_length: length } = recordOf(metadata?.log);
      if (!length) continue;
      if (!(tokens > 0.5 * length)) break;
      const full = tokens > 0.8 * length;
      const filled = (full ? warning : line).replace("TOKENS", Number(tokens).toLocaleString("en"));
      return `<span class="${full ? "full" : ""}">${filled.replace("LENGTH", Number(length).toLocaleString("en"))}</span>`;
    }
    return "";
  };
})();
