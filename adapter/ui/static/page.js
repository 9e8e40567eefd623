/* The page's behaviour in the browser: fault-tolerant storage, keys, the camera, links and files.
   Knows the elements' ids; its texts come from data-… attributes. Sends no requests. What it relies on in Gradio is
   listed in gradio_internals.py. */

(() => {
  const KEYS = { conversation: "llama-adapter:words", pictures: "llama-adapter:pictures", settings: "llama-adapter:settings" };
  const find = (selector) => document.querySelector(selector);
  const visible = (element) => Boolean(element?.getClientRects().length);

  // Storage: texts and settings, and pictures as data URLs by key, the newest last. `shared` holds the conversation that
  // was changed last in any tab, `own` this tab's, which a reload restores. Either may be full; a browser may forbid
  // them, in a frame of another site for example, and then nothing is stored.
  const attempt = (action) => {
    try {
      return action() ?? true;
    } catch {
      return false;
    }
  };
  const FORBIDDEN = { getItem: () => null, setItem: () => {}, removeItem: () => {} };
  const shared = attempt(() => window.localStorage) || FORBIDDEN;
  const own = attempt(() => window.sessionStorage) || FORBIDDEN;
  const read = (key) => own.getItem(key) ?? shared.getItem(key) ?? "";
  const remove = (key) => {
    shared.removeItem(key);
    own.removeItem(key);
  };
  const write = (key, text) => {
    if (!attempt(() => shared.setItem(key, text))) {
      remove(key); // an old conversation would be restored otherwise
      return false;
    }
    if (!attempt(() => own.setItem(key, text))) own.removeItem(key);
    return true;
  };
  for (const key of Object.values(KEYS)) {
    const copy = own.getItem(key);
    if (copy !== null) attempt(() => shared.setItem(key, copy)); // a reloaded tab is the last one that was changed
  }
  const writePictures = (pictures) => {
    const entries = Object.entries(pictures);
    return write(KEYS.pictures, JSON.stringify(pictures)) || (entries.length > 0 && writeNewerHalf(entries));
  };
  const writeNewerHalf = (entries) => {
    writePictures(Object.fromEntries(entries.slice(Math.ceil(entries.length / 2))));
    return false;
  };
  const writeNewerMessages = ({ messages, ...rest }) => {
    const newer = messages.slice(Math.ceil(messages.length / 2));
    const kept = { ...rest, messages: newer.slice(Math.max(0, newer.findIndex(({ role }) => role === "user"))) };
    return newer.length > 0 && (write(KEYS.conversation, JSON.stringify(kept)) || writeNewerMessages(kept));
  };
  const isNew = !read(KEYS.conversation) && !location.hash.startsWith("#chat="); // nothing will be restored
  let newest = 0; // number of the newest state of the conversation, see conversation_states.py
  let fullTimer = 0;
  const store = (name, numbered) => {
    const end = numbered.indexOf("\n");
    const [number, text] = [Number(numbered.slice(0, end)), numbered.slice(end + 1)];
    if (!(isNew || window.chatPage.restored) || number < newest) return;
    newest = number;
    keep(name, text);
    // Another tab may have written its own pictures beside this tab's texts.
    const pictures = own.getItem(KEYS.pictures);
    if (pictures !== null && pictures !== shared.getItem(KEYS.pictures)) attempt(() => shared.setItem(KEYS.pictures, pictures));
  };
  const keep = (name, text) => {
    let complete;
    if (name === "pictures") {
      complete = writePictures(JSON.parse(text));
    } else if (!(complete = write(KEYS[name], text))) {
      const pictures = read(KEYS.pictures);
      remove(KEYS.pictures);
      write(KEYS[name], text) || (name === "conversation" && writeNewerMessages(JSON.parse(text)));
      if (pictures) attempt(() => writeNewerHalf(Object.entries(JSON.parse(pictures))));
    }
    if (complete) return;
    clearTimeout(fullTimer); // one message, though texts and pictures may both not fit
    fullTimer = setTimeout(() => find("#storage-full")?.click(), 50);
  };

  const keepSettings = (names, values) => keep("settings", JSON.stringify(Object.fromEntries(names.map((n, i) => [n, values[i]]))));

  // A conversation in the address's fragment, which browsers do not send.
  const LINK = "#chat=";
  const linkedConversation = () => (location.hash.startsWith(LINK) ? location.hash.slice(LINK.length) : "");
  addEventListener("hashchange", () => linkedConversation() && location.reload());
  // Back and forward may show a page as it was left; the tab's conversation has gone on since.
  addEventListener("pageshow", (event) => event.persisted && location.reload());

  const copyText = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false; // no https, or not allowed
    }
  };

  // Called by event listeners of conversation_store.py and chat_tab.py.
  window.chatPage = {
    isNew,
    restored: false, // from then on the conversation and settings are stored
    stored: () => [read(KEYS.conversation), read(KEYS.pictures), read(KEYS.settings), linkedConversation()],
    store,
    attach: (file, box) => attach(file, box),
    storeSettings: (names, values) => window.chatPage.restored && keepSettings(names, values),
    // A value that the visitor has changed since the event began stays.
    changePanel: (names, text, values) => {
      if (!text) return values;
      const [, changes] = JSON.parse(text);
      const changed = values.map((value, i) => {
        const [seen, chosen] = changes[names[i]] ?? [];
        return seen !== undefined && (seen ?? "") === (value ?? "") ? chosen : value;
      });
      keepSettings(names, changed);
      return changed;
    },
    // Returns the number of the cleared conversation: newer than what the server has begun. The page's own may have
    // been set back by the last update of an answer that was cleared before.
    clear: (number, step) => {
      [KEYS.conversation, KEYS.pictures].forEach(remove);
      newest = Math.max(newest, Number(number)) + step;
      return String(newest);
    },
    // From now on a reload shows the stored conversation.
    leaveLink: () => linkedConversation() && history.replaceState(null, "", location.pathname + location.search),
    address: (packed) => (packed ? location.origin + location.pathname + LINK + packed : ""),
    copy: async (address) => (address && (await copyText(address)) ? "yes" : ""),
    save: (name, text) => {
      if (!text) return;
      const anchor = document.createElement("a");
      anchor.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      anchor.download = name;
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
    },
  };

  // Removes the invisible characters that chatbot.py adds from what is copied. Of a table only its JSON is copied.
  const jsonOfTable = (text) => {
    if (!text.startsWith('<div class="json-answer">')) return null;
    return new DOMParser().parseFromString(text, "text/html").querySelector(".json-answer code")?.textContent;
  };
  const unescapeMarkup = (text) => jsonOfTable(text) ?? text.replace(/([<&!\\])\u2060/g, "$1");
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
    const copied = button && (await copyText(button.parentElement.querySelector("code").textContent));
    button?.classList.toggle("copied", copied);
  });

  // Esc stops the answer of the visible tab.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    if (find("dialog[open]") || event.target.closest?.("[role=listbox], [aria-expanded=true], .edit-textarea")) return;
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
  // Accessibility that Gradio lacks (6.31): its list of examples has no items, its pictures are buttons without a
  // name, and the keyboard does not reach a card or code that scrolls.
  const setAttribute = (selector, name, value) => {
    for (const element of document.querySelectorAll(selector)) element.setAttribute(name, value);
  };
  const fixAccessibility = () => {
    setAttribute("#chat .examples[role=list]", "role", "group");
    setAttribute("#chat .image-container button:not([aria-label])", "aria-label", camera()?.dataset.picture ?? "");
    setAttribute(":is(#about .prose, #chat pre):not([tabindex])", "tabindex", "0");
    for (const name of ["title", "aria-label"])
      setAttribute(`#chat .bot-row + .message-buttons [${name}="Edit"]`, name, camera()?.dataset.correct ?? "");
  };
  const onChange = () => {
    restoreFocus();
    fixAccessibility();
  };
  addEventListener("DOMContentLoaded", onChange);
  new MutationObserver(onChange).observe(document.documentElement, { childList: true, subtree: true });

  // The camera. Its picture is pasted into the message box.
  let stream = null;
  const camera = () => find("#camera dialog");
  const showMessage = (name) => {
    camera().querySelector("p").textContent = camera().dataset[name] ?? "";
    camera().classList.toggle("silent", !name);
  };
  const openCamera = async () => {
    showMessage("");
    camera().showModal();
    if (!navigator.mediaDevices?.getUserMedia) return showMessage("insecure");
    try {
      const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      if (!camera().open) return opened.getTracks().forEach((track) => track.stop());
      stream = opened;
      const video = camera().querySelector("video");
      video.srcObject = stream;
      await video.play();
    } catch (error) {
      if (!camera().open) return;
      showMessage({ NotAllowedError: "refused", SecurityError: "refused", NotFoundError: "none" }[error.name] ?? "busy");
    }
  };
  const closeCamera = () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
  };
  const takePicture = () => {
    const video = camera().querySelector("video");
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => {
        camera().close();
        attach(new File([blob], "camera.jpg", { type: "image/jpeg" }));
      },
      "image/jpeg",
      0.92,
    );
  };
  const attach = async (file, box = find("#box")) => {
    box.querySelector(".thumbnail-item .delete-button")?.click(); // the box holds one picture
    await new Promise((done) => setTimeout(done, 100));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(file);
    const field = box.querySelector("textarea");
    field.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
    field.focus();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#camera button");
    if (!button) return;
    ({ open: openCamera, take: takePicture, close: () => camera().close() })[button.name]?.();
  });
  document.addEventListener("close", (event) => event.target === camera() && closeCamera(), true);
})();
