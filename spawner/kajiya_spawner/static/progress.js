// The progress page: one line a sentence, the present one with a turning ring; goes on by itself when the server is ready.
(() => {
  const page = document.getElementById("progress");
  if (!page) return;
  const byId = (id) => document.getElementById(id);
  const steps = byId("steps");
  const bar = byId("bar");
  const stop = byId("stop");
  const note = byId("note");
  const began = Date.now();
  let ended = false;

  const percent = (value) => {
    bar.setAttribute("aria-valuenow", String(value));
    bar.firstElementChild.style.width = `${value}%`;
  };
  const mark = (line, name) => {
    line.firstElementChild.replaceWith(byId(name).content.firstElementChild.cloneNode(true));
  };
  const settle = (name) => {
    const now = steps.querySelector("li.now");
    if (!now) return;
    now.classList.remove("now");
    mark(now, name);
  };
  const line = (text, kind) => {
    settle("check");
    const item = document.createElement("li");
    item.className = kind;
    const ring = document.createElement("span");
    ring.className = "spin";
    ring.setAttribute("aria-hidden", "true");
    const words = document.createElement("span");
    words.className = "text";
    words.textContent = text;
    item.append(ring, words);
    steps.append(item);
    return item;
  };
  const fail = (text) => {
    ended = true;
    const now = steps.querySelector("li.now");
    if (now) now.remove();
    const item = line(text, "wrong");
    mark(item, "wrong");
    page.classList.add("failed");
    byId("title").textContent = page.dataset.failed;
    byId("intro").hidden = true;
    byId("elapsed").hidden = true;
    byId("again").hidden = false;
    stop.remove();
    note.textContent = "";
  };

  steps.replaceChildren();
  let source;
  const listen = () => {
    source = new EventSource(page.dataset.events);
    // After a break the stream begins anew, so the list does too.
    source.onopen = () => {
      if (ended) return;
      steps.replaceChildren();
      note.textContent = "";
      line(page.dataset.asked, "now");
    };
    source.onerror = () => {
      if (ended) return;
      note.textContent = page.dataset.lost;
      if (source.readyState === EventSource.CLOSED) window.setTimeout(() => window.location.reload(), 3000);
    };
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.failed) {
        source.close();
        percent(100);
        fail((event.message || "").replace(/^Spawn failed: /, ""));
        return;
      }
      if (typeof event.progress === "number") percent(event.progress);
      if (event.ready) {
        ended = true;
        source.close();
        line(event.message || "", "now");
        settle("check");
        window.location.reload();
        return;
      }
      // The Hub's own first words are said by this page in the reader's language.
      if (event.message && !(event.progress === 0 && event.message === "Server requested")) line(event.message, "now");
    };
  };
  listen();

  stop.addEventListener("click", async () => {
    stop.disabled = true;
    note.textContent = page.dataset.stopping;
    ended = true;
    source.close();
    const name = page.dataset.server;
    const path = name ? `servers/${encodeURIComponent(name)}` : "server";
    try {
      await fetch(`${document.body.dataset.base}api/users/${encodeURIComponent(page.dataset.user)}/${path}`, {
        method: "DELETE",
        headers: { "X-XSRFToken": document.body.dataset.xsrf },
      });
    } finally {
      window.location.assign(page.dataset.home);
    }
  });

  const tick = () => {
    const seconds = Math.floor((Date.now() - began) / 1000);
    byId("elapsed").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    if (!ended) window.setTimeout(tick, 1000);
  };
  tick();
})();
