// Console: what every page does beside links and forms: says when the connection is lost, shortcuts, dialogs, the drawer, buttons that call the API.
(() => {
  const LOST_MS = 3000, byId = (id) => document.getElementById(id);
  const say = (text) => { byId("said").textContent = text; };
  window.waypost = { say };

  // ---------------------------------------------------------------- live parts: fresh, or said to be old
  let heard = Date.now(), told = false; // told: the console itself said why there is nothing new, and says no more until there is
  const note = (text) => {
    const lost = byId("lost");
    if (lost.textContent !== (text || "")) lost.textContent = text || "";
    lost.hidden = !text;
    document.body.classList.toggle("stale", Boolean(text));
  };
  const fresh = () => { heard = Date.now(); told = false; note(""); };
  document.addEventListener("htmx:sse:after:message", (event) => { if (!event.detail.message.event) fresh(); });
  document.addEventListener("unavailable", (event) => {
    told = true;
    let why = event.detail.data, code = "";
    try { ({ message: why, code } = JSON.parse(why).error); } catch { /* as it is */ }
    if (code === "not_logged_in") location.reload(); // to the page that asks who one is
    note(`${why}. The numbers below are those of the time they carry.`);
  });
  for (const name of ["htmx:sse:error", "htmx:sse:close", "htmx:sse:before:connection"]) document.addEventListener(name, () => { told = false; });
  const live = document.querySelector("[hx-sse\\:connect]");
  if (live) {
    setInterval(() => {
      if (document.hidden) heard = Date.now();
      else if (told) return;
      else if (Date.now() - heard > LOST_MS) note("Connection lost. The numbers below are those of the time they carry; this page goes on by itself.");
    }, 500);
  }
  document.addEventListener("htmx:after:swap", (event) => { // a number that changed is tinted for a second
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const node of document.querySelectorAll("[data-n]")) {
      const before = was.get(node);
      if (before !== undefined && before !== node.textContent) node.animate([{ background: "var(--accent-bg)" }, {}], 1000);
      was.set(node, node.textContent);
    }
  });
  const was = new WeakMap();

  // ---------------------------------------------------------------- calling the API
  const call = async (method, path, body, headers = {}) => {
    const answer = await fetch(path, {
      method, headers: { "Content-Type": "application/json", ...headers }, body: body === undefined ? undefined : JSON.stringify(body),
    }).catch(() => null);
    if (!answer) return { ok: false, status: 0, message: "The console does not answer; try again." };
    const said = answer.status === 204 ? null : await answer.json().catch(() => null);
    return { ok: answer.ok, status: answer.status, said, message: said?.error?.message, path: said?.error?.path, etag: answer.headers.get("ETag") };
  };
  window.waypost.call = call;
  document.addEventListener("click", async (event) => { // <button data-call="POST /api/…" data-body="{…}" data-then="/journeys">
    const button = event.target.closest("button[data-call]"); // a form with it asks first, below
    if (!button || button.type === "submit") return;
    if (button.dataset.sure && button.dataset.asked !== "yes") { // asks once
      button.dataset.asked = "yes";
      button.setAttribute("hx-morph-skip", ""); // what comes meanwhile does not take the question back
      const text = button.textContent;
      button.textContent = button.dataset.sure;
      say(button.dataset.sure);
      setTimeout(() => { button.dataset.asked = ""; button.removeAttribute("hx-morph-skip"); button.textContent = text; }, 5000);
      return;
    }
    await act(button);
  });
  const act = async (button) => {
    const [method, path] = button.dataset.call.split(" ");
    button.disabled = true;
    const answer = await call(method, path, button.dataset.body ? JSON.parse(button.dataset.body) : undefined);
    button.disabled = false;
    if (!answer.ok) return wrong(button, answer.message);
    if (button.dataset.said) say(button.dataset.said);
    if (button.dataset.then) location.assign(button.dataset.then);
  };
  const wrong = (near, message) => {
    const place = near.closest("dialog")?.querySelector("[data-error]") || byId("error") || byId("said");
    place.textContent = message || "That did not work.";
    place.hidden = false;
  };
  document.addEventListener("submit", async (event) => { // forms in dialogs that ask for an id before they do something for good
    const form = event.target.closest("form[data-call]");
    if (!form) return;
    event.preventDefault();
    const field = form.querySelector("[data-expect]");
    if (field && field.value !== field.dataset.expect) return wrong(form, `This is not the id. Type ${field.dataset.expect}`);
    const [method, path] = form.dataset.call.split(" ");
    const answer = await call(method, path);
    if (answer.ok) location.assign(form.dataset.then);
    else wrong(form, answer.message);
  });

  // ---------------------------------------------------------------- dialogs, menus, the drawer
  let opener = null;
  document.addEventListener("click", (event) => {
    const opens = event.target.closest("[data-dialog]");
    if (opens) {
      const dialog = byId(opens.dataset.dialog);
      opener = opens.closest("details")?.querySelector("summary") || opens;
      for (const field of dialog.querySelectorAll("[data-expect]")) field.value = "";
      for (const place of dialog.querySelectorAll("[data-error]")) place.hidden = true;
      opens.closest("details")?.removeAttribute("open");
      dialog.showModal();
      return;
    }
    if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.removeAttribute("open");
    const copies = event.target.closest("[data-copy]");
    if (copies) {
      const ids = [...document.querySelectorAll(copies.dataset.copy)].map((node) => node.dataset.id);
      navigator.clipboard?.writeText(ids.join("\n")).then(() => say(`${ids.length} ids copied`), () => say("Copying is not allowed here"));
    }
    const row = event.target.closest("a[hx-get]");
    if (row && row.getAttribute("hx-target") === "#drawer") byId("drawer").dataset.from = row.id;
  });
  if (new URLSearchParams(location.search).has("delete")) byId("delete")?.showModal();
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("close", () => { opener?.focus(); opener = null; });
  }
  const drawer = byId("drawer");
  const closeDrawer = () => {
    const from = byId(drawer.dataset.from || "");
    const there = drawer.querySelector("[data-without]")?.dataset.without;
    drawer.replaceChildren();
    if (there) history.pushState(null, "", there);
    from?.focus();
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-shut]")) { event.preventDefault(); closeDrawer(); }
  });
  if (drawer) {
    document.addEventListener("htmx:after:swap", (event) => {
      if (event.detail.ctx?.target === drawer || event.target === drawer) {
        const here = drawer.querySelector("[data-here]")?.dataset.here;
        if (here && here !== location.pathname + location.search) history.pushState(null, "", here);
        if (!drawer.contains(document.activeElement)) drawer.querySelector("h2")?.focus();
      }
    });
    addEventListener("popstate", () => location.reload());
  }

  // ---------------------------------------------------------------- keyboard
  const LETTERS = "waypost-letters";
  const letters = byId("letters");
  letters.checked = localStorage.getItem(LETTERS) !== "off";
  letters.addEventListener("change", () => localStorage.setItem(LETTERS, letters.checked ? "on" : "off"));
  const typing = (node) => node.closest("input:not([type=checkbox]):not([type=radio]),textarea,select,[contenteditable]");
  let went = 0;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      const menu = document.querySelector("details.menu[open]");
      if (menu) { menu.removeAttribute("open"); menu.querySelector("summary").focus(); }
      else if (drawer?.firstElementChild) closeDrawer();
      return;
    }
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !typing(event.target)) {
      const list = event.target.closest("[data-list]");
      if (list) {
        const links = [...list.querySelectorAll("a[data-row]")], at = links.indexOf(document.activeElement);
        const next = links[at + (event.key === "ArrowDown" ? 1 : -1)];
        if (next) { event.preventDefault(); next.focus(); }
      }
    }
    if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "/") {
      const search = document.querySelector("[data-search]");
      if (search) { event.preventDefault(); search.focus(); }
      return;
    }
    if (event.key === "?") { opener = document.activeElement; byId("shortcuts").showModal(); return; }
    if (!letters.checked) return;
    const key = event.key.toLowerCase();
    if (Date.now() - went < 1000 && { j: 1, c: 1, o: 1 }[key]) { location.assign({ j: "/journeys", c: "/contacts", o: "/operations" }[key]); return; }
    if (key === "g") { went = Date.now(); return; }
    const button = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (button && !button.disabled) { event.preventDefault(); button.click(); }
  });
})();
