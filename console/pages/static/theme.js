// Theme: system, light or dark, kept in this browser. Runs in the head, so that no page flashes in the other colours.
(() => {
  const root = document.documentElement, kinds = ["system", "light", "dark"];
  const read = () => { try { return localStorage.getItem("waypost-theme") || "system"; } catch { return "system"; } };
  let theme = read();
  const show = () => {
    if (theme === "system") root.removeAttribute("data-theme"); else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) { button.hidden = false; button.setAttribute("aria-label", `Theme: ${theme}`); document.getElementById("theme-name").textContent = theme; }
  };
  show();
  addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      theme = kinds[(kinds.indexOf(theme) + 1) % kinds.length];
      try { localStorage.setItem("waypost-theme", theme); } catch { /* kept for this page only */ }
      show();
    });
  });
})();
