// Light or dark: the system's choice unless the reader chose. Shares its memory with the Hub's own pages.
(() => {
  const key = "jupyterhub-bs-theme";
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  };
  const apply = () => {
    const wanted = stored();
    root.dataset.bsTheme = wanted === "light" || wanted === "dark" ? wanted : system.matches ? "dark" : "light";
  };
  root.classList.add("js");
  apply();
  system.addEventListener("change", apply);
  window.addEventListener("storage", apply);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    try {
      localStorage.setItem(key, root.dataset.bsTheme === "dark" ? "light" : "dark");
    } catch {
      root.dataset.bsTheme = root.dataset.bsTheme === "dark" ? "light" : "dark";
      return;
    }
    apply();
  });
})();
