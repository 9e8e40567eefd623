/* Conversations in the browser: kept in IndexedDB, listed, opened, renamed and deleted; links and files.
   Sends no requests: events of conversation_store.py call window.chatPage and are triggered by it. The list's elements
   and texts come from theme.conversations_html. */

(() => {
  const OLD = ["llama-adapter:words", "llama-adapter:pictures"]; // where earlier versions kept one conversation
  const [SETTINGS, CURRENT] = ["llama-adapter:settings", "llama-adapter:conversation"];
  const UNDO_MS = 3_600_000; // after which a deleted conversation is gone from the browser
  const LINK = "#chat=";
  const find = (selector) => document.querySelector(selector);
  const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2);
  const TAB = newId();

  const attempt = (action) => {
    try {
      return action() ?? true;
    } catch {
      return false;
    }
  };
  // A browser may forbid any storage, in a frame of another site for example: what is kept then goes with the page.
  const inMemory = (kept = new Map()) => ({
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, String(value)),
    removeItem: (key) => void kept.delete(key),
  });
  for (const name of ["localStorage", "sessionStorage"]) // Gradio's BrowserState (6.31) relies on the first
    if (!attempt(() => window[name].getItem(""))) Object.defineProperty(window, name, { value: inMemory() });
  const [shared, own] = [localStorage, sessionStorage]; // the second is this tab's
  const database = new Promise((resolve, reject) => {
    const request = indexedDB.open("llama-adapter", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("pictures"); // data URLs by a hash of the picture
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  // A page does not wait for ever for a storage that does not answer. What comes later is listed and kept all the same.
  const soon = (promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, 10_000))]);
  // Resolves to the result of the request that `act` returns, when all is written; rejects if nothing is.
  const transact = async (mode, act) => {
    const transaction = (await database).transaction(["conversations", "pictures"], mode);
    return new Promise((resolve, reject) => {
      transaction.onabort = () => reject(transaction.error);
      const request = act(transaction.objectStore("conversations"), transaction.objectStore("pictures"));
      transaction.oncomplete = () => resolve(request?.result);
    });
  };

  // What the list shows, by id: {id, title, changed, deleted, tab, settings, document}. document: of transcript.py, with
  // pictures by key; title: only if the visitor chose one; tab: the one that wrote it.
  const conversations = new Map();
  const pictures = new Map(); // that this page has written, by key: the browser may not have kept them
  // The page's conversation. server: the id that the server knows it by, another one once two tabs have gone on with it;
  // changed: the time of its record when the page read it; unsaved: came with a link.
  let shown = { id: "" };
  let settings; // the side panel's, by name
  let kept = 0; // how often the server has sent a conversation to be kept
  let writing = Promise.resolve(); // one after the other
  let [restored, full, keepsNothing, deleted] = [false, false, false, ""];

  const messagesOf = (record) => [record?.document?.messages ?? []].flat().filter((message) => message instanceof Object);
  const picturesOf = (record) => messagesOf(record).flatMap(({ picture }) => picture ?? []);
  const firstWords = (record) => messagesOf(record).find(({ role, text }) => role === "user" && text)?.text;
  const titleOf = (record) => String(record.title || firstWords(record) || list().dataset.untitled).slice(0, 200);
  const listed = () =>
    [...conversations.values()].filter((r) => messagesOf(r).length && !r.deleted).sort((a, b) => b.changed - a.changed);
  const linked = () => (location.hash.startsWith(LINK) ? location.hash.slice(LINK.length) : "");
  const leaveLink = () => linked() && history.replaceState(null, "", location.pathname + location.search);

  const refresh = async () => {
    for (const record of await transact("readonly", (records) => records.getAll())) {
      const newer = conversations.get(record.id)?.changed > record.changed; // there was no room for it
      if (!newer) conversations.set(record.id, record);
    }
  };
  // Two requests of one transaction see the same state: no picture of what another tab is writing is removed.
  const removeOld = () =>
    transact("readwrite", (records, images) => {
      records.getAll().onsuccess = ({ target: { result } }) => {
        const gone = (r) => !messagesOf(r).length || (r.deleted && r.deleted < Date.now() - UNDO_MS);
        const old = result.filter(gone);
        old.forEach((record) => records.delete(record.id));
        const used = new Set(result.filter((record) => !old.includes(record)).flatMap(picturesOf));
        images.getAllKeys().onsuccess = ({ target }) =>
          target.result.filter((key) => !used.has(key)).forEach((key) => images.delete(key));
      };
    });
  const takeOver = async () => {
    for (const storage of [shared, own]) {
      const [words, images] = OLD.map((key) => storage.getItem(key) ?? "");
      const document = attempt(() => JSON.parse(words));
      const known = [...conversations.values()].some((r) => JSON.stringify(r.document) === JSON.stringify(document));
      if (document?.messages && !known) {
        const kept = attempt(() => JSON.parse(storage.getItem(SETTINGS))) || undefined;
        const record = { id: newId(), changed: Date.now(), tab: TAB, settings: kept, document };
        conversations.set(record.id, record);
        await write({ id: record.id }, record, attempt(() => JSON.parse(images || "{}")) || {});
      }
      OLD.forEach((key) => storage.removeItem(key));
    }
  };
  const begin = async () => {
    const load = async () => {
      await database.catch(() => (keepsNothing = true));
      for (const step of [removeOld, refresh, takeOver]) await step().catch(() => {}); // the page works without
    };
    await soon(load());
    shown.id = linked() ? newId() : (own.getItem(CURRENT) ?? listed()[0]?.id ?? newId());
  };

  const write = (mine, record, sent) =>
    transact("readwrite", (records, images) => {
      for (const [key, url] of Object.entries(sent)) images.put(url, key);
      records.get(record.id).onsuccess = ({ target: { result: before } }) => {
        const same = JSON.stringify(messagesOf(before)) === JSON.stringify(messagesOf(record));
        if (before && before.tab !== TAB && before.changed !== mine.changed && !same) {
          // Another tab has gone on with it: both are kept.
          conversations.set(before.id, before);
          mine.id = record.id = newId();
          conversations.set(mine.id, record);
          if (mine === shown) own.setItem(CURRENT, mine.id);
        }
        records.put(record);
      };
    });
  // Keeps a conversation, the only place that writes one.
  const keep = ({ id, document, pictures: sent = {} }) => {
    kept += 1;
    leaveLink(); // from now on a reload shows the stored conversation
    if (!isOpening && id !== shown.server) shown = { id, server: id }; // a file
    const mine = id === shown.server ? shown : { id };
    delete mine.unsaved;
    if (document.messages.length) hideUndo();
    if (mine === shown) attempt(() => own.setItem(CURRENT, mine.id));
    const made = () => {
      const before = conversations.get(mine.id);
      return { ...before, id: mine.id, changed: Date.now(), deleted: 0, tab: TAB, settings, document };
    };
    conversations.set(mine.id, made());
    Object.entries(sent).forEach(([key, url]) => pictures.set(key, url));
    writing = writing.then(async () => {
      const record = made();
      try {
        await write(mine, record, sent);
        full = false;
      } catch (error) {
        if (error?.name !== "QuotaExceededError") return;
        if (!full) note("storage-full");
        full = true;
        await write(mine, record, {}).catch(() => {});
      }
    });
  };
  const amend = (id, changes) => {
    if (!conversations.has(id)) return;
    conversations.set(id, { ...conversations.get(id), ...changes });
    const change = (records) => {
      records.get(id).onsuccess = ({ target: { result } }) => result && records.put({ ...result, ...changes });
    };
    writing = writing.then(() => transact("readwrite", change)).catch(() => {});
  };
  const remember = (names, values) => {
    settings = Object.fromEntries(names.map((name, i) => [name, values[i] ?? ""]));
    for (const storage of [shared, own]) attempt(() => storage.setItem(SETTINGS, JSON.stringify(settings)));
    amend(shown.id, { settings });
  };

  // The list, and what is done in it.
  const list = () => find("#conversations dialog");
  const undo = () => find("#conversations .undo");
  const hideUndo = () => (undo().hidden = true);
  let connect;
  const events = new Promise((resolve) => (connect = resolve)); // of the server
  const note = async (name, more) => (await events).note({ name, ...more });
  let [isOpening, isWaiting, afterOpening, next] = [true, false, [], null];
  const open = (id, unsaved) => {
    list().close();
    hideUndo();
    leaveLink();
    next = { id, unsaved };
    if (!isOpening) send();
    if (matchMedia("(hover: hover)").matches) find("#box textarea")?.focus();
  };
  const openNewKeepingUndo = () => {
    const { hidden } = undo();
    open(newId());
    undo().hidden = hidden;
  };
  // Sends the conversation to be shown. The one before stays in sight until the server shows this one.
  const send = async () => {
    isOpening = true;
    if (next) attempt(() => own.setItem(CURRENT, next.id)); // a page that is loaded may show a link, or another tab's
    shown = next ?? shown;
    next = null;
    shown.server = shown.id;
    await soon(writing.then(refresh)).catch(() => {});
    const record = conversations.get(shown.id);
    shown.changed = record?.changed;
    const found = {};
    for (const key of new Set(picturesOf(record))) {
      const url = pictures.get(key) ?? (await transact("readonly", (_, images) => images.get(key)).catch(() => {}));
      if (url) found[key] = url;
    }
    const panel = JSON.stringify(record?.settings) ?? (restored ? "" : (own.getItem(SETTINGS) ?? shared.getItem(SETTINGS)));
    const stored = shown.unsaved ?? (messagesOf(record).length ? record.document : null);
    const document = stored ? JSON.stringify(stored) : "";
    const answer = record?.document?.answer ?? "";
    (await events).open({ id: shown.id, document, pictures: JSON.stringify(found), settings: panel ?? "", link: linked(), answer });
  };
  // A message or an example that is sent meanwhile waits until the conversation is there.
  const SENDERS = "#box .submit-button, #chat .example";
  const senderOf = ({ type, key, shiftKey, isComposing, target }) => {
    if (type === "click") return target.closest?.(SENDERS);
    return key === "Enter" && !shiftKey && !isComposing && target.matches?.("#box textarea") && target;
  };
  const wait = (event) => {
    const sender = isOpening && senderOf(event);
    if (!sender) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const example = [...document.querySelectorAll("#chat .example")].indexOf(sender); // they may be drawn anew
    const again = () => (document.querySelectorAll("#chat .example")[example] ?? find("#box .submit-button"))?.click();
    if (!isWaiting) afterOpening.push(again);
    isWaiting = true;
  };
  for (const type of ["keydown", "click"]) document.addEventListener(type, wait, true);
  const remove = (id) => {
    if (!messagesOf(conversations.get(id)).length) return;
    amend(id, { deleted: Date.now() });
    deleted = id;
    undo().querySelector("span").textContent = undo().dataset.text.replace("{}", titleOf(conversations.get(id)));
    undo().hidden = false;
  };
  const render = () => {
    const words = list().querySelector("input[type=search]").value.trim().toLowerCase();
    const matches = (r) => [titleOf(r), ...messagesOf(r).map(({ text }) => text ?? "")].join("\n").toLowerCase().includes(words);
    const found = listed().filter(matches);
    list().querySelector("ul").replaceChildren(...found.map(row));
    const { none, empty, forgotten } = list().dataset;
    list().querySelector("p").textContent = !found.length ? (words ? none : empty) : keepsNothing ? forgotten : "";
  };
  const row = (record) => {
    const item = list().querySelector("template").content.firstElementChild.cloneNode(true);
    const [title, about] = item.querySelectorAll("span");
    const when = new Date(record.changed).toLocaleString([], { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
    title.textContent = titleOf(record);
    about.textContent = [record.settings?.adapter || list().dataset.base, when].join(" · ");
    item.dataset.id = record.id;
    if (record.id === shown.id) item.querySelector("button").setAttribute("aria-current", "true");
    return item;
  };
  const rename = (item) => {
    const field = document.createElement("input");
    field.value = titleOf(conversations.get(item.dataset.id));
    field.setAttribute("aria-label", item.querySelector("[name=rename]").title);
    const finish = (save) => {
      if (!field.isConnected) return;
      if (save) amend(item.dataset.id, { title: field.value.trim() });
      field.onblur = null;
      render();
      list().querySelector(`[data-id="${item.dataset.id}"] button`)?.focus();
    };
    field.onblur = () => finish(true);
    field.onkeydown = (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault(); // Esc would close the list
      finish(event.key === "Enter");
    };
    item.querySelector("button").replaceWith(field);
    field.select();
  };
  const actions = {
    list: async () => {
      list().showModal();
      list().append(undo()); // what is beside the list cannot be pressed
      list().querySelector("input").value = "";
      render();
      await refresh().then(render, () => {}); // other tabs may have written
    },
    new: () => open(newId()),
    close: () => list().close(),
    open: (item) => open(item.dataset.id),
    rename,
    delete: (item) => {
      remove(item.dataset.id);
      render();
      if (item.dataset.id === shown.id) openNewKeepingUndo();
    },
    undo: () => {
      amend(deleted, { deleted: 0 });
      open(deleted);
    },
  };
  document.addEventListener("click", (event) => {
    if (event.target === list()) return list().close(); // beside it
    const button = event.target.closest?.("#conversations button");
    if (button) actions[button.name]?.(button.closest("li"));
  });
  document.addEventListener("close", (event) => event.target === list() && list().before(undo()), true);
  document.addEventListener("input", (event) => event.target.matches?.("#conversations [type=search]") && render());

  addEventListener("hashchange", () => /^#(chat|adapter)=/.test(location.hash) && location.reload());
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

  const begun = begin();
  const save = (name, text) => {
    if (!text) return;
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    anchor.download = name;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
  };
  const share = async (packed) => {
    const address = location.origin + location.pathname + LINK + packed;
    const copied = await copyText(address);
    note(copied ? "copied" : "", { address });
  };

  // Called by event listeners of conversation_store.py, chat/tab.py and the Train tab.
  window.chatPage = {
    note,
    get restored() {
      return restored;
    },
    get kept() {
      return kept;
    },
    connect,
    begin: () => void begun.then(send),
    // A conversation is shown, or could not be: then the page goes on with the one that it shows.
    opened: (id, names, values) => {
      if (id !== shown.server && id) shown = { id, server: id };
      if (!restored) remember(names, values);
      restored = true;
      isOpening = isWaiting = false;
      if (next) send();
      else afterOpening.splice(0).forEach((act) => act());
    },
    // From the server: a conversation to be kept, one that came with a link, a link, or a question for what is shown.
    receive: (text) => {
      const { keep: sent, unsaved, copy, open: again } = text ? JSON.parse(text) : {};
      if (sent) keep(sent);
      if (unsaved) shown.unsaved = unsaved;
      if (copy) share(copy);
      if (again) open(shown.id, shown.unsaved);
    },
    clear: () => {
      remove(shown.id);
      openNewKeepingUndo();
    },
    storeSettings: (names, values) => restored && remember(names, values),
    // Resolves when the new conversation is there, so that what follows meets no update of it.
    openNew: () =>
      new Promise((resolve) => {
        afterOpening.push(resolve);
        actions.new();
      }),
    copy: async (text) => (text && (await copyText(text)) ? "yes" : ""), // for page.js
    save,
    // The file of transcript.py, a message a line.
    export: async (name) => {
      const found = shown.unsaved ?? conversations.get(shown.id)?.document;
      if (!found?.messages?.length) return note("nothing");
      const images = {};
      for (const key of new Set(picturesOf({ document: found })))
        images[key] = pictures.get(key) ?? (await transact("readonly", (_, stored) => stored.get(key)));
      const { messages, answer: _, ...head } = found;
      const lines = messages.map((message) => JSON.stringify(message)).join(",\n");
      save(name, `${JSON.stringify({ ...head, settings, pictures: images }).slice(0, -1)}, "messages": [\n${lines}\n]}\n`);
    },
  };
})();
