// Small helps on the sign-in pages: show what was typed, copy a link.
document.addEventListener("click", async (event) => {
  const show = event.target.closest("[data-show]");
  if (show) {
    const field = document.getElementById(show.dataset.show);
    field.type = field.type === "password" ? "text" : "password";
    show.setAttribute("aria-pressed", String(field.type === "text"));
    return;
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const field = document.getElementById(copy.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy");
    }
    const words = copy.querySelector("span");
    const before = words.textContent;
    words.textContent = copy.dataset.copied;
    window.setTimeout(() => {
      words.textContent = before;
    }, 2000);
  }
});
