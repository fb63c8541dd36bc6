// The front end of JobWidget. All text reaches the page by textContent; images only as data: of the types listed here.
const IMAGES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"]);
const STALE_SECONDS = 60;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  // The notebook's one-key commands would take arrows and letters from whoever uses this by keyboard.
  if (tag === "button" || tag === "pre") node.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function download(name, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type: "application/x-ipynb+json" }));
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function serverBase() {
  try {
    return JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl || null;
  } catch {
    return null; // no Jupyter server behind this front end
  }
}

// Through the server extension, because a kernel that is busy with a cell hears of a click only after it.
async function stopByServer(id) {
  const base = serverBase();
  if (!base) return false;
  const xsrf = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  try {
    const answer = await fetch(`${base}kajiya/api/jobs/${encodeURIComponent(id)}/stop`, {
      method: "POST",
      credentials: "same-origin",
      headers: xsrf ? { "X-XSRFToken": decodeURIComponent(xsrf[1]) } : {},
    });
    return answer.ok;
  } catch {
    return false;
  }
}

function serverLink(path, label) {
  // JupyterLab opens it in place by the command; the address is for a new tab and for other front ends.
  const base = serverBase();
  if (!base) return null;
  const encoded = path.split("/").map(encodeURIComponent).join("/");
  const link = element("a", { href: `${base}lab/tree/${encoded}`, target: "_blank", rel: "noopener" }, label);
  if (document.querySelector(".jp-LabShell")) {
    link.setAttribute("data-commandlinker-command", "docmanager:open");
    link.setAttribute("data-commandlinker-args", JSON.stringify({ path }));
    link.removeAttribute("target");
  }
  return link;
}

// Goes to the end as text comes, unless the reader has scrolled up.
function fill(box, value) {
  if (box.textContent === value) return;
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
  box.textContent = value;
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function render({ model, el }) {
  const words = model.get("words");
  const id = `kajiya-${Math.random().toString(36).slice(2)}`;
  el.classList.add("kajiya");

  const name = element("span", { class: "kajiya-name" });
  const pill = element("span", { class: "kajiya-pill" });
  const time = element("span", { class: "kajiya-time" });
  const number = element("code", { class: "kajiya-id" });
  const head = element("div", { class: "kajiya-head" }, pill, name, number, time);

  const fillBar = element("div", { class: "kajiya-fill" });
  const bar = element("div", { class: "kajiya-bar", role: "progressbar", "aria-valuemin": "0" }, fillBar);
  const count = element("span", { class: "kajiya-count" });
  const progress = element("div", { class: "kajiya-progress" }, bar, count);
  const standing = element("div", { class: "kajiya-standing", role: "status", "aria-live": "polite" });
  const source = element("code", { class: "kajiya-source" });
  const trouble = element("div", { class: "kajiya-trouble", role: "status" });
  const about = element("div", { class: "kajiya-about" });

  const stop = element("button", { type: "button", class: "kajiya-stop" });
  const again = element("button", { type: "button" }, words.again);
  const save = element("button", { type: "button" }, words.save);
  const load = element("button", { type: "button" }, words.download);
  const buttons = element("div", { class: "kajiya-buttons" }, stop, again, save, load);
  const notice = element("div", { class: "kajiya-notice", role: "status", "aria-live": "polite" });

  const box = element("pre", { class: "kajiya-text", tabindex: "0", id: `${id}-text` });
  const picture = element("img", { class: "kajiya-image", alt: words.image });
  const attempts = element("ol", { class: "kajiya-list" });
  const results = element("ul", { class: "kajiya-list" });
  const panels = {
    output: element("div", {}, box, picture),
    log: element("pre", { class: "kajiya-text", tabindex: "0" }),
    attempts: element("div", {}, attempts),
    results: element("div", {}, results),
  };
  const tabs = {};
  const tablist = element("div", { class: "kajiya-tabs", role: "tablist" });
  for (const key of Object.keys(panels)) {
    tabs[key] = element("button", {
      type: "button",
      role: "tab",
      id: `${id}-tab-${key}`,
      "aria-controls": `${id}-${key}`,
    });
    tabs[key].textContent = words[key];
    panels[key].id = `${id}-${key}`;
    panels[key].setAttribute("role", "tabpanel");
    panels[key].setAttribute("aria-labelledby", `${id}-tab-${key}`);
    panels[key].classList.add("kajiya-panel");
    tablist.append(tabs[key]);
  }
  const card = element("section", { class: "kajiya-card" });
  card.append(head, progress, standing, source, trouble, about, buttons, notice, tablist, ...Object.values(panels));
  el.append(card);

  const send = (message) => model.send(message);
  let chosen = "output";
  function choose(key) {
    if (chosen === "log" && key !== "log") send({ do: "log", open: false });
    chosen = key;
    for (const [other, tab] of Object.entries(tabs)) {
      tab.setAttribute("aria-selected", String(other === key));
      tab.tabIndex = other === key ? 0 : -1;
      panels[other].hidden = other !== key;
    }
    if (key === "log") {
      if (!model.get("log_text")) text(panels.log, words.loading);
      send({ do: "log", open: true });
    }
  }
  tablist.addEventListener("click", (event) => {
    const found = Object.keys(tabs).find((key) => tabs[key] === event.target);
    if (found) choose(found);
  });
  tablist.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const shown = Object.keys(tabs).filter((key) => !tabs[key].hidden);
    const next = shown[(shown.indexOf(chosen) + step + shown.length) % shown.length];
    choose(next);
    tabs[next].focus();
    event.preventDefault();
  });

  let sure = 0;
  function calm() {
    clearTimeout(sure);
    sure = 0;
    text(stop, words.stop);
    stop.classList.remove("kajiya-sure");
  }
  stop.addEventListener("click", () => {
    // Two clicks, because a stop can't be taken back; a dialogue would cover what it is about.
    if (!sure) {
      sure = setTimeout(calm, 4000);
      text(stop, words.stop_sure);
      stop.classList.add("kajiya-sure");
      return;
    }
    calm();
    stop.disabled = true;
    // Whatever the server can't do the kernel can, and it says what is wrong.
    stopByServer(model.get("view").id).then((done) => done || send({ do: "stop" }));
  });
  again.addEventListener("click", () => {
    again.disabled = true;
    send({ do: "again" });
  });
  save.addEventListener("click", () => send({ do: "save" }));
  load.addEventListener("click", () => send({ do: "download" }));
  results.addEventListener("click", (event) => {
    const path = event.target.dataset && event.target.dataset.path;
    if (path) send({ do: "keep", path });
  });

  let heard = Date.now();
  let first = true;
  function showView() {
    const view = model.get("view");
    // What was stored in a notebook may be old; what comes while this is open is news.
    heard = first ? Math.min(Date.now(), view.at * 1000) : Date.now();
    first = false;
    text(name, view.name);
    text(number, view.id);
    text(standing, view.standing);
    text(source, view.source);
    text(about, view.about);
    card.setAttribute("aria-label", `${words.label}: ${view.name}`);
    const share = view.total ? view.done / view.total : view.status === "succeeded" ? 1 : 0;
    fillBar.style.width = `${Math.round(share * 100)}%`;
    bar.setAttribute("aria-valuemax", String(view.total));
    bar.setAttribute("aria-valuenow", String(view.done));
    bar.setAttribute("aria-label", words.cells);
    bar.classList.toggle("kajiya-busy", !view.final && !view.total);
    text(count, view.total ? `${view.done} / ${view.total} ${words.cells}` : "");
    stop.hidden = view.final;
    stop.disabled = !view.stoppable;
    if (view.final) calm();
    again.hidden = !view.final;
    again.disabled = !view.final;
    save.disabled = load.disabled = !view.started;
    attempts.replaceChildren(...view.attempts.map((line) => element("li", {}, line)));
    tabs.attempts.hidden = view.attempts.length < 2;
    tabs.results.hidden = !view.results.length;
    text(tabs.results, `${words.results} (${view.results.length})`);
    results.replaceChildren(
      ...view.results.map((file) => {
        const keep = element("button", { type: "button", "aria-label": `${words.keep}: ${file.path}` }, words.keep);
        keep.dataset.path = file.path;
        return element("li", {}, element("code", {}, file.path), ` ${file.size} `, keep);
      }),
    );
    if (tabs[chosen].hidden) choose("output");
    tick();
  }
  function tick() {
    const view = model.get("view");
    const stale = !view.final && Date.now() - heard > STALE_SECONDS * 1000;
    // Without news the last known status is not stated as if it still held.
    const unknown = stale || (!view.final && Boolean(view.trouble));
    card.dataset.status = unknown ? "unknown" : view.status;
    text(pill, unknown ? `${view.word}?` : view.word);
    const running = view.final || unknown ? 0 : Math.max(0, Date.now() / 1000 - view.at);
    text(time, clock(view.elapsed + (running < 86400 ? running : 0)));
    text(trouble, stale ? words.stale : view.trouble);
    trouble.hidden = !trouble.textContent;
  }
  function showTail() {
    const tail = model.get("tail");
    const image = model.get("image");
    fill(box, tail || (image.data ? "" : words.empty_output));
    box.classList.toggle("kajiya-empty", !tail);
    box.hidden = !tail && Boolean(image.data);
    picture.hidden = !(image.data && IMAGES.has(image.mime));
    if (picture.hidden) {
      picture.removeAttribute("src");
    } else {
      const svg = image.mime === "image/svg+xml";
      const data = svg ? `;charset=utf-8,${encodeURIComponent(image.data)}` : `;base64,${image.data.replace(/\s/g, "")}`;
      picture.src = `data:${image.mime}${data}`;
    }
  }
  function showLog() {
    fill(panels.log, model.get("log_text") || (chosen === "log" ? words.empty_log : ""));
  }
  function showNotice() {
    const found = model.get("notice");
    notice.replaceChildren();
    notice.classList.toggle("kajiya-error", found.kind === "error");
    notice.hidden = !found.text;
    if (!found.text) return;
    notice.append(found.text);
    const link = found.path && serverLink(found.path, words.open);
    if (link) notice.append(" ", link);
    if (found.kind === "error") showView();
  }
  function message(content, buffers) {
    if (content && content.download && buffers && buffers.length) download(content.download, buffers[0]);
  }

  const listeners = [
    ["change:view", showView],
    ["change:tail", showTail],
    ["change:image", showTail],
    ["change:log_text", showLog],
    ["change:notice", showNotice],
    ["msg:custom", message],
  ];
  for (const [name, listener] of listeners) model.on(name, listener);
  const timer = setInterval(tick, 1000);
  choose("output");
  text(stop, words.stop);
  showView();
  showTail();
  showNotice();
  send({ do: "here", view: id });
  return () => {
    send({ do: "gone", view: id });
    clearInterval(timer);
    clearTimeout(sure);
    for (const [name, listener] of listeners) model.off(name, listener);
  };
}

export default { render };
