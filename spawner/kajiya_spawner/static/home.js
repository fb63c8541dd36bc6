// The home page: stop and delete servers, and go to the picker for one more.
(() => {
  const home = document.getElementById("home");
  if (!home) return;
  const problem = document.getElementById("problem");
  const tell = (text) => {
    problem.hidden = false;
    problem.querySelector("p").textContent = home.dataset.failed.replace("{problem}", text);
  };
  home.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    button.disabled = true;
    const path = button.closest("[data-path]").dataset.path;
    const remove = button.dataset.act === "delete";
    try {
      const url = `${document.body.dataset.base}api/users/${encodeURIComponent(home.dataset.user)}/${path}`;
      const answer = await fetch(url, {
        method: "DELETE",
        headers: { "X-XSRFToken": document.body.dataset.xsrf, "Content-Type": "application/json" },
        body: JSON.stringify({ remove }),
      });
      if (!answer.ok) {
        const body = await answer.json().catch(() => ({}));
        throw new Error(body.message || `HTTP ${answer.status}`);
      }
      window.location.reload();
    } catch (error) {
      tell(error.message);
      button.disabled = false;
    }
  });
  const form = document.getElementById("new-server");
  if (form) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      window.location.assign(form.dataset.spawn + encodeURIComponent(document.getElementById("new-name").value));
    });
  }
  // What starts or stops ends soon: look again without being asked.
  if (home.querySelector('a[href*="spawn-pending"]')) window.setTimeout(() => window.location.reload(), 3000);
})();
