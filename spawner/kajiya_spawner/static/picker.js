// The picker while it is open: dependent options, what a choice gives, and what is free now. The page works without it.
(() => {
  const cards = document.getElementById("cards");
  const start = document.getElementById("start");
  const note = document.getElementById("start-note");
  if (!cards || !start) return;
  const own = new WeakMap();

  const setText = (element, text) => {
    if (element && element.textContent !== text) element.textContent = text;
  };

  const options = (card) => {
    const chosen = {};
    const figures = {};
    for (const option of card.querySelectorAll("[data-option]")) {
      const when = JSON.parse(option.dataset.when || "{}");
      const applies = Object.entries(when).every(([other, choices]) => choices.includes(chosen[other]));
      option.hidden = !applies;
      option.disabled = !applies;
      const picked = option.querySelector("input:checked");
      if (applies && picked) {
        chosen[option.dataset.option] = picked.value;
        Object.assign(figures, JSON.parse(picked.dataset.figures || "{}"));
      }
    }
    for (const element of card.querySelectorAll("[data-gives]")) {
      if (!own.has(element)) own.set(element, element.textContent);
      setText(element, figures[element.dataset.gives] || own.get(element));
    }
  };

  const button = () => {
    const picked = cards.querySelector(".pick:checked");
    const card = picked && picked.closest(".card");
    const off = !card || card.classList.contains("off");
    start.disabled = off;
    setText(note, off && card ? card.querySelector("[data-state]").textContent.trim() : "");
  };

  const show = (live) => {
    const rows = document.querySelectorAll("#machine li");
    live.machine.forEach((row, i) => {
      if (!rows[i]) return;
      setText(rows[i].querySelector("[data-words]"), row.words);
      rows[i].querySelector(".meter i").style.setProperty("--used", `${row.used}%`);
    });
    for (const seen of live.profiles) {
      const card = cards.querySelector(`.card[data-profile="${CSS.escape(seen.slug)}"]`);
      if (!card) continue;
      const words = live.words[seen.slug];
      card.classList.toggle("off", !seen.available);
      card.querySelector(".pick").disabled = !seen.available;
      setText(card.querySelector("[data-state]"), words.state);
      for (const element of card.querySelectorAll("[data-free]")) setText(element, words.free[element.dataset.free]);
    }
    button();
  };

  let timer = 0;
  let wait = 3000;
  const refresh = async () => {
    window.clearTimeout(timer);
    if (document.hidden) return;
    try {
      const answer = await fetch(cards.dataset.refresh, {
        headers: { "X-XSRFToken": document.body.dataset.xsrf, Accept: "application/json" },
      });
      if (answer.status === 401 || answer.status === 403) return;
      if (!answer.ok) throw new Error(String(answer.status));
      show(await answer.json());
      wait = 3000;
    } catch {
      wait = Math.min(wait * 2, 60000);
    }
    timer = window.setTimeout(refresh, wait);
  };

  cards.addEventListener("change", (event) => {
    const card = event.target.closest(".card");
    if (card) options(card);
    button();
  });
  document.getElementById("spawn_form").addEventListener("submit", () => {
    window.setTimeout(() => {
      start.disabled = true;
      window.clearTimeout(timer);
    });
  });
  // Back from the next page: the browser shows this one as it was left.
  window.addEventListener("pageshow", button);
  document.addEventListener("visibilitychange", refresh);
  cards.querySelectorAll(".card").forEach(options);
  button();
  if (cards.dataset.refresh) timer = window.setTimeout(refresh, wait);
})();
