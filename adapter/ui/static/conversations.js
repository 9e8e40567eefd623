/* Conversations in the browser: kept in IndexedDB, listed, opened, renamed and deleted; links and files. Sends no
   requests: events of conversation_store.py call window.chatPage and are triggered by it. The list is in
   conversations.html. A conversation goes to the server as the text of a file, wherever it comes from. */

(() => {
  const [SETTINGS, CURRENT] = ["llama-adapter:settings", "llama-adapter:conversation"];
  const UNDO_MS = 3_600_000; // after which the next page that is loaded removes a deleted conversation
  const LINK = "#chat=";
  const EMPTY = { format: "llama-adapter conversation", version: 2 };
  const [MAX_LINK, MAX_FILE] = [8_000, 6_000_000]; // mail and messengers may cut longer ones; what a request has room for
  const find = (selector) => document.querySelector(selector);
  // As secret as this storage: the server goes on with a conversation for whoever knows its id.
  const newId = () => [...crypto.getRandomValues(new Uint32Array(4))].map((number) => number.toString(36)).join("");

  const attempt = (action, otherwise) => {
    try {
      return action();
    } catch {
      return otherwise;
    }
  };
  const parse = (text) => attempt(() => JSON.parse(text), null);
  // A browser may forbid any storage, in a frame of another site for example: what is kept then goes with the page.
  const inMemory = (kept = new Map()) => ({
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, String(value)),
  });
  for (const name of ["localStorage", "sessionStorage"]) // Gradio's BrowserState (6.31) relies on the first
    if (!attempt(() => window[name])) Object.defineProperty(window, name, { value: inMemory() });
  const [shared, own] = [localStorage, sessionStorage]; // the second is this tab's
  const { setItem } = Storage.prototype; // for Gradio's BrowserState, which keeps corrections and fails without a word
  Storage.prototype.setItem = function (key, value) {
    const fails = !attempt(() => setItem.call(this, key, value) ?? true);
    if (key.endsWith(":corrections")) told = fails && (told || Boolean(act("STORAGE_FULL")));
  };
  const openDatabase = (resolve, reject) => {
    const request = indexedDB.open("llama-adapter", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("pictures"); // data URLs by a hash of the picture
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  };
  let database = new Promise(openDatabase);
  // A page does not wait for ever for a storage that does not answer. What comes later is listed and kept all the same.
  const soon = (promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, 10_000))]);
  // Resolves to the result of the request that `act` returns, when all is written; rejects if nothing is.
  const transact = async (mode, act, again = true) => {
    try {
      const transaction = (await database).transaction(["conversations", "pictures"], mode);
      return await new Promise((resolve, reject) => {
        transaction.onabort = () => reject(transaction.error);
        const request = act(transaction.objectStore("conversations"), transaction.objectStore("pictures"));
        transaction.oncomplete = () => resolve(request?.result);
      });
    } catch (error) {
      if (!again || !["InvalidStateError", "UnknownError"].includes(error?.name)) throw error;
      database = new Promise(openDatabase); // the browser has closed it
      return transact(mode, act, false);
    }
  };

  // What the list shows, by id: {id, title, changed, deleted, settings, document}. document: of transcript.py, with
  // pictures by key; title: only if the visitor chose one.
  const conversations = new Map();
  const pictures = new Map(); // that this page has written, by key: the browser may not have kept them
  // The page's conversation. unsaved: {text, source}, of a link or a file that is not kept yet.
  let [shown, before] = [{ id: "" }, { id: "" }];
  let settings; // the side panel's, by name
  let writing = Promise.resolve(); // one after the other
  let [retried, full, told, keepsNothing, deleted, toShare] = [false, false, false, false, ""]; // toShare: what a link is made of

  const messagesOf = (record) => [record?.document?.messages ?? []].flat().filter((message) => message instanceof Object);
  const picturesOf = (record) => messagesOf(record).flatMap(({ picture }) => picture ?? []);
  const firstWords = (record) => messagesOf(record).find(({ role, text }) => role === "user" && text)?.text;
  const titleOf = (record) => String(record.title || firstWords(record) || list().dataset.untitled).slice(0, 200);
  const listed = () =>
    [...conversations.values()].filter((r) => messagesOf(r).length && !r.deleted).sort((a, b) => b.changed - a.changed);
  const linked = () => (location.hash.startsWith(LINK) ? location.hash.slice(LINK.length) : "");
  const leaveLink = () => linked() && history.replaceState(null, "", location.pathname + location.search);

  const learn = (record) => {
    if (!(conversations.get(record.id)?.changed > record.changed)) conversations.set(record.id, record); // no room for it
  };
  const stored = (id) => soon(transact("readonly", (records) => records.get(id))).catch(() => {});
  const refresh = async () => (await transact("readonly", (records) => records.getAll())).forEach(learn);
  // All that is kept, read once, without what was deleted long ago. Two requests of one transaction see the same state:
  // no picture of what another tab is writing is removed.
  const load = () =>
    transact("readwrite", (records, images) => {
      records.getAll().onsuccess = ({ target: { result } }) => {
        const gone = (r) => !messagesOf(r).length || (r.deleted && r.deleted < Date.now() - UNDO_MS);
        for (const record of result) gone(record) ? records.delete(record.id) : learn(record);
        const used = new Set(result.filter((record) => !gone(record)).flatMap(picturesOf));
        images.getAllKeys().onsuccess = ({ target }) =>
          target.result.filter((key) => !used.has(key)).forEach((key) => images.delete(key));
      };
    });
  const begin = async () => {
    await soon(database.then(load, () => (keepsNothing = true))).catch(() => {}); // the page works without
    shown = { id: linked() ? newId() : (own.getItem(CURRENT) || (listed()[0]?.id ?? newId())) };
    if (linked()) shown.unsaved = { text: await fromLink(linked()).catch(() => ""), source: "link" };
  };

  // Changes a conversation, the only place that writes one. Another tab may have changed something else of it.
  const change = (id, changes, sent = {}) => {
    conversations.set(id, { deleted: 0, ...conversations.get(id), ...changes, id });
    const write = (images) =>
      transact("readwrite", (records, stored) => {
        for (const [key, url] of Object.entries(images)) stored.put(url, key);
        records.get(id).onsuccess = ({ target: { result } }) => {
          const mine = conversations.get(id), { document, changed } = mine; // maybe newer than could be stored
          const record = { ...mine, ...result, ...(changed > result?.changed && { document, changed }), ...changes, id };
          conversations.set(id, record);
          if (result || changes.document) records.put(record); // not what another tab has removed for good
        };
      });
    writing = writing.then(async () => {
      try {
        await write(sent);
        full = false;
      } catch {
        if (!full && !keepsNothing) act("STORAGE_FULL");
        full = true;
        await write({}).catch(() => {});
      }
    });
    return writing;
  };
  const keep = ({ id, document, pictures: sent = {}, begins }) => {
    page.kept += 1;
    if (!isOpening && id !== shown.id) shown = { id }; // the Train tab has begun one
    if (id === shown.id) {
      leaveLink(); // from now on a reload shows the stored conversation
      delete shown.unsaved;
      attempt(() => own.setItem(CURRENT, id));
    }
    if (begins && document.messages.length) undo().hidden = true;
    for (const [key, url] of Object.entries(sent)) pictures.set(key, url);
    const before = conversations.get(id);
    // Where an earlier question was edited, what came after it stays, in a conversation of its own.
    const [had, has] = [before, { document }].map((one) => messagesOf(one).filter(({ role }) => role === "user"));
    const edited = has.findIndex(({ text }, i) => text !== had[i]?.text);
    if (edited >= 0 && edited === has.length - 1 && has.length < had.length) {
      change(newId(), { ...before, deleted: 0 });
      act("KEPT_APART");
    }
    const same = JSON.stringify(before?.document) === JSON.stringify(document);
    const changes = { document, changed: same ? before.changed : Date.now(), ...(settings && id === shown.id && { settings }) };
    if (begins || has.length > had.length) changes.deleted = 0; // one may be missed; else another tab's deletion stays
    change(id, changes, sent);
  };
  const isUnsavedLink = () => shown.unsaved?.source === "link";
  const amend = (id, changes) => conversations.has(id) && change(id, changes);
  const remember = (names, values) => {
    settings = Object.fromEntries(names.map((name, i) => [name, values[i] ?? ""]));
    amend(shown.id, { settings });
    if (isUnsavedLink()) return; // its settings are a stranger's
    for (const storage of [shared, own]) attempt(() => storage.setItem(SETTINGS, JSON.stringify(settings)));
  };

  const toText = async (record) => {
    const found = {};
    for (const key of new Set(picturesOf(record)))
      found[key] = pictures.get(key) ?? (await transact("readonly", (_, images) => images.get(key)).catch(() => {}));
    const { messages: _, ...head } = record.document;
    const lines = messagesOf(record).map((message) => JSON.stringify(message)).join(",\n");
    const rest = JSON.stringify({ ...head, settings: record.settings || {}, pictures: found });
    return `${rest.slice(0, -1)}, "messages": [\n${lines}\n]}\n`;
  };
  // A link holds the text compressed, without pictures, tokens and other answers.
  const through = async (bytes, stream) =>
    new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
  const toLink = async (record, settings) => {
    const bare = ({ token_ids: _, picture: __, before: ___, after: ____, ...rest }) => rest;
    const messages = messagesOf(record).map((message) => {
      if (message.picture) return { role: "page", text: find("#this-conversation .actions").dataset.notSent };
      return message.record ? { ...message, record: bare(message.record) } : message;
    });
    const text = await toText({ document: { ...record.document, messages }, settings });
    const packed = await through(new TextEncoder().encode(text), new CompressionStream("deflate"));
    if (packed.length > 0.75 * MAX_LINK) return "";
    return btoa(String.fromCharCode(...packed)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  };
  const fromLink = async (packed) => {
    if (packed.length > MAX_LINK) return "";
    const bytes = Uint8Array.from(atob(packed.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    return new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate")));
  };

  const list = () => find("#conversations dialog");
  const undo = () => find("#conversations .undo");
  let connect;
  const events = new Promise((resolve) => (connect = resolve)); // of the server
  const act = async (name, more) => (await events).act({ name, ...more }); // a note to be shown, or what has its name
  let [isOpening, next, waiting] = [true, null, null]; // waiting: what is done once a conversation is shown
  const open = (id, unsaved) => {
    list().close();
    undo().hidden = true;
    if (unsaved?.source !== "link") leaveLink(); // a page that has slept opens its own again
    if (isUnsavedLink() && !unsaved) {
      attempt(() => own.setItem(CURRENT, id));
      return soon(writing).then(() => location.reload()); // with the visitor's own settings
    }
    [next, waiting] = [{ id, unsaved }, id === (next ?? shown).id ? waiting : null]; // what waits is for one alone
    if (!isOpening) send();
    if (matchMedia("(hover: hover)").matches) find("#box textarea")?.focus();
  };
  // Sends the conversation to be shown. The one before stays in sight until the server shows this one.
  const send = async () => {
    isOpening = true;
    if (next) {
      attempt(() => own.setItem(CURRENT, next.id)); // a page that is loaded may show a link, or another tab's
      [before, shown, next] = [shown, next, null];
      // Gradio keeps an edit that is open, by the number of its row.
      if (before.id !== shown.id) find("#chat .edit-textarea")?.closest(".message-row").nextElementSibling.querySelectorAll("button")[1]?.click();
    }
    const { id, unsaved } = shown;
    await soon(writing);
    const found = await stored(id);
    if (found) learn(found);
    const record = conversations.get(id);
    const panel = record?.settings ?? (page.restored ? null : parse(own.getItem(SETTINGS) ?? shared.getItem(SETTINGS)));
    const text = unsaved?.text ?? (await toText({ document: EMPTY, ...record, settings: panel }));
    (await events).open({ id, text, source: unsaved?.source ?? "" });
  };
  // A message or an example that is sent meanwhile waits until the conversation is there.
  const senderOf = ({ type, key, keyCode, shiftKey, isComposing, target }) => {
    if (type === "click") return target.closest?.("#box .submit-button, #chat .example");
    return key === "Enter" && keyCode !== 229 && !shiftKey && !isComposing && target.matches?.("#box textarea") && target;
  };
  const wait = (event) => {
    const sender = isOpening && senderOf(event);
    if (!sender) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const examples = () => [...document.querySelectorAll("#chat .example")]; // they may be drawn anew
    const example = examples().indexOf(sender);
    waiting ??= () => (example < 0 ? find("#box .submit-button") : examples()[example])?.click();
  };
  for (const type of ["keydown", "click"]) document.addEventListener(type, wait, true);
  const render = () => {
    const words = list().querySelector("input[type=search]").value.trim().normalize("NFKC").toLowerCase();
    const matches = (r) => [titleOf(r), ...messagesOf(r).map(({ text }) => text ?? "")].join("\n").normalize("NFKC").toLowerCase().includes(words);
    const found = listed().filter(matches);
    const [shownList, rows] = [list().querySelector("ul"), found.map(row)];
    if (shownList.innerHTML.trim() !== rows.map(({ outerHTML }) => outerHTML).join("")) shownList.replaceChildren(...rows); // one may be pressed just now
    const { none, empty, forgotten } = list().dataset;
    list().querySelector("p").textContent = !found.length ? (words ? none : empty) : keepsNothing ? forgotten : "";
  };
  const row = (record) => {
    const item = list().querySelector("template").content.firstElementChild.cloneNode(true);
    const [title, about] = item.querySelectorAll("span");
    const when = new Date(record.changed).toLocaleString([], { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
    title.textContent = titleOf(record);
    title.dir = "auto";
    for (const button of item.querySelectorAll("[title]")) button.ariaLabel = `${button.title}: ${titleOf(record)}`;
    about.textContent = [record.settings?.adapter || list().dataset.base, when].join(" · ");
    item.dataset.id = record.id;
    if (record.id === shown.id) item.querySelector("button").setAttribute("aria-current", "true");
    return item;
  };
  const rename = (item) => {
    const field = document.createElement("input");
    field.defaultValue = titleOf(conversations.get(item.dataset.id));
    field.setAttribute("aria-label", item.querySelector("[name=rename]").title);
    const finish = (save) => {
      if (!field.isConnected) return;
      if (save && field.value !== field.defaultValue) amend(item.dataset.id, { title: field.value.trim() });
      field.onblur = null;
      render();
      list().querySelector(`[data-id="${item.dataset.id}"] button`)?.focus();
    };
    field.onblur = () => finish(true);
    field.onkeydown = (event) => {
      if (event.isComposing || event.keyCode === 229 || !["Enter", "Escape"].includes(event.key)) return;
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
      await refresh().then(() => find("#conversations li input") || render(), () => {}); // other tabs may have written
    },
    new: () => open(newId()),
    close: () => list().close(),
    open: (item) => open(item.dataset.id),
    rename,
    delete: ({ dataset: { id } }) => {
      if (id === shown.id) open(newId());
      amend(id, { deleted: Date.now() });
      deleted = id;
      undo().querySelector("span").textContent = undo().dataset.text.replace("{}", () => titleOf(conversations.get(id)));
      undo().hidden = false;
      render();
      (list().querySelector("li button") ?? list().querySelector("input")).focus();
    },
    undo: () => {
      amend(deleted, { deleted: 0 });
      open(deleted);
    },
    import: () => find("#this-conversation input[type=file]").click(),
    export: async () => {
      if (!messagesOf(current()).length) return act("NOTHING_TO_EXPORT");
      page.save(find("#this-conversation .actions").dataset.name, await toText({ ...current(), settings }));
    },
    link: () => {
      if (!messagesOf(current()).length) return act("NOTHING_TO_EXPORT");
      toShare = [shown.id, current(), settings];
      act("link", { id: shown.id });
    },
  };
  const current = () => (shown.unsaved ? { document: parse(shown.unsaved.text) } : conversations.get(shown.id));
  document.addEventListener("click", (event) => {
    if (event.target === list() && event.clientX > list().offsetWidth) list().close(); // beside it: Safari has no closedby
    if (event.target.closest?.("#chat .divider")) act("all"); // the line that says what is read of others' answers
    const button = event.target.closest?.("#conversations button, #this-conversation .actions button");
    if (button) actions[button.name]?.(button.closest("li"));
  });
  document.addEventListener("change", async ({ target }) => {
    if (!target.matches?.("#this-conversation input[type=file]") || !target.files.length) return;
    const [file] = target.files;
    if (file.size > MAX_FILE) act("FILE_TOO_LARGE");
    else open(newId(), { text: await file.text().catch(() => ""), source: "file" });
    target.value = ""; // the same file again is a change too
  });
  document.addEventListener("close", (event) => event.target === list() && list().before(undo()), true);
  document.addEventListener("input", (event) => event.target.matches?.("#conversations [type=search]") && render());

  addEventListener("hashchange", () => (isUnsavedLink() || /^#(chat|adapter)=/.test(location.hash)) && location.reload());
  // Back and forward may show a page as it was left; the tab's conversation has gone on since.
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  for (const type of ["visibilitychange", "focus"]) addEventListener(type, async () => {
    if (document.hidden || isOpening) return;
    const isBehind = (await stored(shown.id))?.changed > (conversations.get(shown.id)?.changed ?? 0); // another tab's
    if (!isOpening) isBehind ? open(shown.id) : act("awake");
  });

  const begun = begin();
  // before: what the frozen base answers, which stands above the newest answer if there is room for it.
  const share = async (before, of) => {
    const [id, record, chosen] = toShare, messages = [...messagesOf(record)];
    if (id !== of) return; // another link was asked for since
    messages.splice(messages.findLastIndex(({ role }) => role === "assistant"), 0, { role: "page", text: before });
    const both = before && (await toLink({ document: { ...record.document, messages } }, chosen));
    const packed = both || (await toLink(record, chosen));
    if (!packed) return act("LINK_TOO_LONG");
    const address = location.origin + location.pathname + LINK + packed;
    const copied = navigator.clipboard?.writeText(address).then(() => true, () => false);
    act((await copied) ? "LINK_COPIED" : "", { address });
  };

  const page = (window.chatPage = {
    act,
    restored: false, // whether a conversation has been shown
    kept: 0, // how often the server has sent one to be kept
    connect,
    begin: () => void begun.then(send),
    // The server has refused an event, maybe that of a conversation to be shown.
    refused: () => isOpening && !next && page.opened(before.id),
    // A conversation is shown, or could not be: then the one before, behind a link the tab's own, or a new one.
    opened: (id, names, values) => {
      if (id !== shown.id && !next) {
        if (conversations.has(shown.id)) act("NOT_OPENED"); // of a file or a link the server has said why
        if (!id && !retried) [next, retried] = [{ id: (isUnsavedLink() && own.getItem(CURRENT)) || newId() }, !isUnsavedLink()];
        waiting = null;
        before = shown = id === before.id ? before : { id };
        attempt(() => own.setItem(CURRENT, id));
      } else {
        if (!page.restored) remember(names, values);
        page.restored = true;
      }
      isOpening = false;
      const again = next ? send : waiting;
      if (!next) waiting = null;
      again?.();
      return [id, ...(values ?? [])];
    },
    // From the server: a conversation to be kept, a question for what is shown, or what a link says before it.
    receive: (text) => {
      const { keep: sent, open: again, share: before, of } = text ? JSON.parse(text) : {};
      if (sent) keep(sent);
      if (before !== undefined) share(before, of);
      if (again) open(shown.id || newId(), shown.unsaved);
    },
    storeSettings: (names, values) => {
      document.dispatchEvent(new Event("llama-adapter:settings")); // for page.js
      if (page.restored) remember(names, values);
    },
    save: (name, text) => {
      const anchor = document.createElement("a");
      anchor.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      anchor.download = name;
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(anchor.href), 600_000);
    },
  });
})();
