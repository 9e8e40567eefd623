/* What the page does by itself in the browser: storage that cannot break it, keys, the camera, links and files.
   Knows the elements' ids; its words come from the page (data-… attributes). Asks no server for anything. */

(() => {
  const OURS = "llama-adapter:";
  const KEPT = ["words", "pictures", "settings"];
  const find = (selector) => document.querySelector(selector);
  const visible = (element) => Boolean(element?.getClientRects().length);

  // Storage. Where a browser forbids it (a frame of another site, say), a memory stands in for as long as the page
  // is open. Gradio reports a full one as an error: here the oldest pictures make room instead.
  try {
    window.localStorage.length;
  } catch {
    const memory = new Map();
    const standIn = {
      getItem: (key) => memory.get(key) ?? null,
      setItem: (key, value) => void memory.set(key, String(value)),
      removeItem: (key) => void memory.delete(key),
    };
    Object.defineProperty(window, "localStorage", { value: standIn });
  }
  const plainSet = window.Storage.prototype.setItem;
  const trySet = (storage, key, value) => {
    try {
      plainSet.call(storage, key, value);
      return true;
    } catch {
      return false;
    }
  };
  // What all tabs keep is the conversation that was last touched; a tab's own copy is what its reload brings back.
  let own = null;
  try {
    own = window.sessionStorage;
    for (const name of KEPT) {
      const copy = own.getItem(OURS + name);
      if (copy !== null) trySet(localStorage, OURS + name, copy);
    }
  } catch {
    // forbidden, as above
  }
  // Gradio reports what it cannot decrypt as an error, too.
  for (const name of KEPT) {
    const kept = localStorage.getItem(OURS + name);
    if (kept !== null && !/^[\w+/=]+:[\w+/=]+$/.test(kept)) localStorage.removeItem(OURS + name);
  }
  window.Storage.prototype.setItem = function (key, value) {
    if (this === own || !String(key).startsWith(OURS)) return plainSet.call(this, key, value);
    if (!trySet(this, key, value)) makeRoom(this, key, value);
    const kept = this.getItem(key);
    if (own && (kept === null || !trySet(own, key, kept))) own.removeItem(key);
  };
  const makeRoom = (storage, key, value) => {
    storage.removeItem(OURS + "pictures");
    if (key !== OURS + "pictures" && !trySet(storage, key, value)) {
      storage.removeItem(key); // half a conversation would be worse than none
    }
    setTimeout(() => find("#fewer-pictures")?.click(), 50);
  };

  // A conversation in the address: after the #, which browsers send nowhere.
  const LINK = "#chat=";
  const linked = () => (location.hash.startsWith(LINK) ? location.hash.slice(LINK.length) : "");
  addEventListener("hashchange", () => linked() && location.reload());

  const copyText = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false; // no https, or not allowed
    }
  };

  window.talkPage = {
    restored: false, // settings are kept from then on
    linked,
    // The visitor goes on: from now on a reload shows what is kept.
    leaveLink: () => linked() && history.replaceState(null, "", location.pathname + location.search),
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

  // Copied is what was written, without the marks that keep it from being taken for HTML (verbatim.py).
  const unmarked = (text) => text.replace(/([<&!\\])\u2060/g, "$1");
  document.addEventListener("copy", (event) => {
    const { target } = event;
    const field = target.matches?.("textarea, input");
    const text = field ? target.value.slice(target.selectionStart, target.selectionEnd) : String(getSelection());
    if (unmarked(text) === text) return;
    event.clipboardData.setData("text/plain", unmarked(text));
    event.preventDefault();
  });
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(unmarked(text));
  }

  // Esc stops what is being answered on the tab that is shown.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    if (find("dialog[open]") || event.target.closest?.("[role=listbox], [aria-expanded=true], .edit-textarea")) return;
    [...document.querySelectorAll(".box .stop-button")].find(visible)?.click();
  });

  // After an answer the message box has the focus again, unless somebody is at work elsewhere or on a phone, whose
  // keyboard would cover the answer.
  let answering = null;
  const watchFocus = () => {
    const box = [...document.querySelectorAll(".box")].find((one) => visible(one.querySelector(".stop-button")));
    if (box) {
      answering = box;
      return;
    }
    const ended = answering;
    answering = null;
    const at = document.activeElement;
    const free = !at || at === document.body || ended?.contains(at) || at.closest("#chat") || !visible(at);
    if (ended && visible(ended) && free && matchMedia("(hover: hover)").matches && !find("#chat .edit-textarea")) {
      ended.querySelector("textarea")?.focus({ preventScroll: true });
    }
  };
  // What Gradio leaves out for those who do not see or do not use a mouse (6.31): its list of examples has no items,
  // its pictures are buttons without a name, and the keyboard does not reach a card that is to be scrolled.
  const mend = (selector, name, value) => {
    for (const element of document.querySelectorAll(selector)) element.setAttribute(name, value);
  };
  const mendAll = () => {
    mend("#chat .examples[role=list]", "role", "group");
    mend("#chat .image-container button:not([aria-label])", "aria-label", camera()?.dataset.picture ?? "");
    mend("#about .prose:not([tabindex])", "tabindex", "0");
  };
  const changed = () => {
    watchFocus();
    mendAll();
  };
  addEventListener("DOMContentLoaded", changed);
  new MutationObserver(changed).observe(document.documentElement, { childList: true, subtree: true });

  // The camera: its picture reaches the message box as one that was pasted.
  let stream = null;
  const camera = () => find("#camera dialog");
  const say = (what) => {
    camera().querySelector("p").textContent = camera().dataset[what] ?? "";
    camera().classList.toggle("silent", !what);
  };
  const openCamera = async () => {
    say("");
    camera().showModal();
    if (!navigator.mediaDevices?.getUserMedia) return say("insecure");
    try {
      const found = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      if (!camera().open) return found.getTracks().forEach((track) => track.stop());
      stream = found;
      const video = camera().querySelector("video");
      video.srcObject = stream;
      await video.play();
    } catch (error) {
      if (!camera().open) return;
      say({ NotAllowedError: "refused", SecurityError: "refused", NotFoundError: "none" }[error.name] ?? "busy");
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
  const attach = async (file) => {
    find("#box .thumbnail-item .delete-button")?.click(); // the box holds one
    await new Promise((done) => setTimeout(done, 100));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(file);
    const box = find("#box textarea");
    box.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
    box.focus();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#camera button");
    if (!button) return;
    ({ open: openCamera, take: takePicture, close: () => camera().close() })[button.name]?.();
  });
  document.addEventListener("close", (event) => event.target === camera() && closeCamera(), true);
})();
