// The front end of JobsWidget: a table that stays up to date. All text reaches the page by textContent.
function cell(tag, value, attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = value;
  for (const [name, found] of Object.entries(attributes)) node.setAttribute(name, found);
  return node;
}

function render({ model, el }) {
  el.classList.add("kajiya");
  const card = document.createElement("section");
  card.className = "kajiya-card";
  card.setAttribute("aria-label", model.get("words").jobs_label);
  const table = document.createElement("table");
  table.className = "kajiya-table";
  const head = table.createTHead().insertRow();
  const body = table.createTBody();
  const foot = cell("div", "", { class: "kajiya-about", role: "status" });
  card.append(table, foot);
  el.append(card);

  function show() {
    head.replaceChildren(...model.get("columns").map((name) => cell("th", name, { scope: "col" })));
    body.replaceChildren(
      ...model.get("rows").map((row) => {
        const line = document.createElement("tr");
        line.dataset.status = row.status;
        line.append(...row.cells.map(() => cell("td", "")));
        row.cells.forEach((value, i) => {
          const kind = { 0: "code", 2: "span" }[i];
          const inner = kind ? cell(kind, value, i === 2 ? { class: "kajiya-pill" } : {}) : value;
          line.children[i].append(inner);
        });
        return line;
      }),
    );
    table.hidden = !model.get("rows").length;
    foot.textContent = model.get("foot");
    foot.hidden = !model.get("foot");
  }
  model.on("change:rows", show);
  model.on("change:foot", show);
  show();
  const view = `kajiya-${Math.random().toString(36).slice(2)}`;
  model.send({ do: "here", view });
  return () => {
    model.send({ do: "gone", view });
    model.off("change:rows", show);
    model.off("change:foot", show);
  };
}

export default { render };
